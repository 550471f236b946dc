package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc/metadata"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

const waterfallSection = "waterfall"

// A spanSample is one span of a life, of all the traces that have it: when it began,
// of the time since the client's call, and how long it took, milliseconds.
type spanSample struct {
	Who     string    `json:"who"`
	Service string    `json:"service"`
	Path    string    `json:"path"` // the names of those above it and its own, a line each
	Begin   []float64 `json:"begin"`
	Took    []float64 `json:"took"`
	Traces  int       `json:"traces"` // of how many
}

// waterfall runs traced containers of each module, one at a time, on a containerd
// that is traced as well: what its own part is, one sees between its spans and the
// shim's.
func waterfall(ctx context.Context, b *bench) (err error) {
	c, err := collector.Start()
	if err != nil {
		return err
	}
	defer c.Close()
	n, err := node.Start(ctx, node.Options{Bin: b.bin, Shim: b.bin, Env: []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.Addr(), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_METRICS_EXPORTER=none",
		"OTEL_SERVICE_NAME=containerd", // the shim has a name of its own
	}})
	if err != nil {
		return err
	}
	dir := n.Dir
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, n.Log())
		}
		err = errors.Join(err, n.Close(), gone(dir))
	}()
	contenders, err := b.enter(ctx, n)
	if err != nil {
		return err
	}
	on := &bench{settings: b.settings, results: b.results, n: n, bin: b.bin, contenders: contenders}
	ctx = n.Context(ctx)
	others, err := on.residents(ctx, contenders[wasmC], b.beside)
	defer func() { err = errors.Join(err, end(context.WithoutCancel(ctx), others)) }()
	if err != nil {
		return err
	}
	p, err := on.startPod(ctx, node.Runtime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end(context.WithoutCancel(ctx))) }()
	further := contenders[tiny]
	further.pod = p.ID()
	contenders[tinyInPod] = further
	traces := map[string][]traced{}
	for round := range b.warm + b.traced {
		for _, name := range traceds {
			t, err := trace(ctx, n.Client, contenders[name], on.id())
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if round >= b.warm {
				traces[name] = append(traces[name], t)
			}
		}
	}
	for _, name := range traceds {
		samples, err := gather(ctx, c, traces[name])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, s := range samples {
			s.Who = name
			b.spans = append(b.spans, s)
		}
	}
	return nil
}

// Who is traced: a further container of a pod has no start of a shim in its trace.
const tinyInPod = tiny + ", a further container in a pod"

var traceds = []string{tiny, tinyInPod, wasmC, wasmGo}

// traced is one life: its trace, the client's own span in it, and when it began and
// ended.
type traced struct {
	id, span   string
	inPod      bool
	began, end time.Time
}

// trace runs a container in a trace of its own. The client's span is made here, and
// is never sent: nothing but its ids goes to containerd.
func trace(ctx context.Context, client *containerd.Client, c contender, id string) (t traced, err error) {
	ids := make([]byte, 24)
	_, _ = rand.Read(ids) // never fails
	t = traced{id: hex.EncodeToString(ids[:16]), span: hex.EncodeToString(ids[16:]), inPod: c.pod != ""}
	container, err := c.create(ctx, client, id, c.args)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	t.began = time.Now()
	_, err = timed(metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+t.id+"-"+t.span+"-01"), container)
	t.end = time.Now()
	return t, err
}

// gather waits until the traces are whole, and puts those spans together that are
// one in all of them: of the same name, below the same ones.
func gather(ctx context.Context, c *collector.Collector, traces []traced) ([]*spanSample, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var samples []*spanSample
	byPath := map[string]*spanSample{}
	for _, t := range traces {
		spans, err := whole(ctx, c, t)
		if err != nil {
			return nil, err
		}
		for _, s := range spans {
			above := collector.Above(spans, s)
			slices.Reverse(above)
			path := strings.Join(append(above, s.Service+" "+s.Name), "\n")
			have := byPath[path]
			if have == nil {
				have = &spanSample{Service: s.Service, Path: path, Traces: len(traces)}
				byPath[path] = have
				samples = append(samples, have)
			}
			have.Begin = append(have.Begin, round3(ms(s.Start.Sub(t.began))))
			have.Took = append(have.Took, round3(ms(s.End.Sub(s.Start))))
		}
	}
	return samples, nil
}

// whole are the spans of a life's trace below the client's, once it has all.
func whole(ctx context.Context, c *collector.Collector, t traced) ([]collector.Span, error) {
	root := collector.Span{Service: "client", Name: "create to delete", TraceID: t.id, ID: t.span, Start: t.began, End: t.end}
	for {
		spans := append([]collector.Span{root}, c.Trace(t.id)...)
		var lack []string
		for _, name := range collector.Life {
			if t.inPod && strings.HasPrefix(name, "shim.") {
				continue
			}
			if !slices.ContainsFunc(spans, func(s collector.Span) bool { return s.Name == name }) {
				lack = append(lack, name)
			}
		}
		orphans := collector.Orphans(spans)
		if len(lack)+len(orphans) == 0 {
			return spans, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("trace %s lacks %q and the parents of %q", t.id, lack, orphans)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func round3(v float64) float64 { return float64(int64(v*1000+0.5)) / 1000 }

func waterfallTable(r *results) string {
	var b strings.Builder
	b.WriteString("The medians of when each span begins and of how long it takes, over traces of containers that were run one at a time, warm. `(itself)` is what no span below\n" +
		"another accounts for: of containerd's, its own work and the start of processes until they say something. Below `task.create` it is the start of the instance process.\n\n")
	for _, name := range traceds {
		spans, traces := medians(r.spans, name)
		if len(spans) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s, %d traces:\n\n```\n%s```\n\n", name, traces, collector.Tree(slices.Concat(spans, itself(spans))))
	}
	return b.String()
}

// negligible is what is not drawn, if it is containerd's: calls of its own stores.
const negligible = 100 * time.Microsecond

// medians is a trace that never was: of each span that most traces have its median
// begin and duration.
func medians(samples []*spanSample, who string) (spans []collector.Span, traces int) {
	at := func(v float64) time.Time { return time.Unix(0, int64(v*float64(time.Millisecond))) }
	for _, s := range samples {
		if s.Who != who || 2*len(s.Begin) < s.Traces {
			continue
		}
		traces = s.Traces
		begin := median(s.Begin)
		parent, name := "", s.Path
		if i := strings.LastIndexByte(s.Path, '\n'); i >= 0 {
			parent, name = s.Path[:i], s.Path[i+1:]
		}
		span := collector.Span{Service: s.Service, Name: short(strings.TrimPrefix(name, s.Service+" ")), ID: s.Path, Parent: parent, Start: at(begin), End: at(begin + median(s.Took))}
		if s.Service == "containerd" && span.End.Sub(span.Start) < negligible {
			continue
		}
		spans = append(spans, span)
	}
	return spans, traces
}

// short is the name of a call without that of its package.
func short(name string) string {
	if slash := strings.IndexByte(name, '/'); slash >= 0 {
		return name[strings.LastIndexByte(name[:slash], '.')+1:]
	}
	return name
}

// itself are spans for what in one that has others below it is in none of them, if
// it is long enough to be seen.
func itself(spans []collector.Span) (gaps []collector.Span) {
	for _, s := range spans {
		below := slices.DeleteFunc(slices.Clone(spans), func(c collector.Span) bool { return c.Parent != s.ID })
		if len(below) == 0 {
			continue
		}
		slices.SortFunc(below, func(a, b collector.Span) int { return a.Start.Compare(b.Start) })
		at := s.Start
		for _, c := range append(below, collector.Span{Start: s.End, End: s.End}) {
			until := c.Start // medians need not be in order
			if until.After(s.End) {
				until = s.End
			}
			if until.Sub(at) >= 5*negligible {
				gaps = append(gaps, collector.Span{Service: s.Service, Name: "(itself)", ID: fmt.Sprint(s.ID, at), Parent: s.ID, Start: at, End: until})
			}
			if c.End.After(at) {
				at = c.End
			}
		}
	}
	return gaps
}
