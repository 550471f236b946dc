// Package collector is a receiver of OTLP over gRPC that keeps spans in memory,
// for the tests and the demo.
package collector

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// Life are the spans of the life of a container that runs to its end.
var Life = []string{
	"shim.start",
	"task.create", "bundle.load", "rootfs.mount", "cgroup.create", "instance.spawn", "sandbox.build",
	"instance.prepare", "module.resolve", "module.load", "sandbox.enter",
	"task.wait", "task.start", "module.instantiate", "module.start", "module.run",
	"task.delete", "rootfs.unmount", "cgroup.destroy",
}

// A Span is a span as it was received.
type Span struct {
	Service   string
	Resource  map[string]string
	Name      string
	Kind      tracepb.Span_SpanKind
	TraceID   string // hexadecimal
	ID        string
	Parent    string // empty for a root
	Start     time.Time
	End       time.Time
	Attrs     map[string]string
	Failed    bool
	Status    string // the description of a failure
	Links     []string
	LinkTrace []string
	Events    []Event
}

// An Event is one of a span.
type Event struct {
	Name  string
	At    time.Time
	Attrs map[string]string
}

// A Collector is a running receiver.
type Collector struct {
	collectorpb.UnimplementedTraceServiceServer
	server   *grpc.Server
	listener net.Listener
	done     chan struct{}

	mu    sync.Mutex
	spans []Span          // guarded by mu
	keep  bool            // guarded by mu
	kept  []proto.Message // guarded by mu
}

// Start starts a receiver on a loopback port.
func Start() (*Collector, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Collector{server: grpc.NewServer(), listener: l, done: make(chan struct{})}
	collectorpb.RegisterTraceServiceServer(c.server, c)
	go func() {
		defer close(c.done)
		_ = c.server.Serve(l) // ends when Close stops it
	}()
	return c, nil
}

// Close stops the receiver.
func (c *Collector) Close() {
	c.server.Stop()
	<-c.done
}

// Addr is where it listens, host:port.
func (c *Collector) Addr() string { return c.listener.Addr().String() }

// Export implements the OTLP trace service.
func (c *Collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keep {
		c.kept = append(c.kept, r)
	}
	for _, rs := range r.ResourceSpans {
		resource := attributes(rs.Resource.GetAttributes())
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, span(resource, s))
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func span(resource map[string]string, s *tracepb.Span) Span {
	out := Span{
		Service: resource["service.name"], Resource: resource, Name: s.Name, Kind: s.Kind,
		TraceID: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
		Start: time.Unix(0, int64(s.StartTimeUnixNano)), End: time.Unix(0, int64(s.EndTimeUnixNano)),
		Attrs:  attributes(s.Attributes),
		Failed: s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR, Status: s.Status.GetMessage(),
	}
	for _, l := range s.Links {
		out.Links = append(out.Links, hex.EncodeToString(l.SpanId))
		out.LinkTrace = append(out.LinkTrace, hex.EncodeToString(l.TraceId))
	}
	for _, e := range s.Events {
		out.Events = append(out.Events, Event{e.Name, time.Unix(0, int64(e.TimeUnixNano)), attributes(e.Attributes)})
	}
	return out
}

func attributes(kvs []*commonpb.KeyValue) map[string]string {
	m := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		m[kv.Key] = text(kv.Value)
	}
	return m
}

// text is a value; of a list, the values with commas between them.
func text(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_IntValue:
		return fmt.Sprint(v.IntValue)
	case *commonpb.AnyValue_BoolValue:
		return fmt.Sprint(v.BoolValue)
	case *commonpb.AnyValue_ArrayValue:
		var values []string
		for _, v := range v.ArrayValue.Values {
			values = append(values, text(v))
		}
		return strings.Join(values, ",")
	}
	return v.String()
}

// Keep has the collector keep what it receives from now on as it is, for [Collector.Text].
func (c *Collector) Keep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep = true
}

// Text is all that was kept, everything that was in it.
func (c *Collector) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, m := range c.kept {
		b.WriteString(prototext.Format(m))
	}
	return b.String()
}

// Spans are all spans received so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Find waits until a span of the given name has come for the container, and
// returns it.
func (c *Collector) Find(ctx context.Context, name, container string) (Span, error) {
	for {
		for _, s := range c.Spans() {
			if s.Name == name && s.Attrs["container.id"] == container {
				return s, nil
			}
		}
		select {
		case <-ctx.Done():
			return Span{}, fmt.Errorf("no span %s of %s has come: %w", name, container, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Trace are the spans of one trace, in the order they began.
func (c *Collector) Trace(id string) []Span {
	var spans []Span
	for _, s := range c.Spans() {
		if s.TraceID == id {
			spans = append(spans, s)
		}
	}
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return spans
}

// Tree draws spans as a tree: what each took, and when it began after the first.
// A span whose parent is not among them stands at the left.
func Tree(spans []Span) string {
	if len(spans) == 0 {
		return ""
	}
	children := map[string][]Span{}
	have := map[string]bool{}
	for _, s := range spans {
		have[s.ID] = true
	}
	for _, s := range spans {
		parent := s.Parent
		if !have[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	var b strings.Builder
	began := spans[0].Start
	var draw func(s Span, lead, branch string)
	draw = func(s Span, lead, branch string) {
		note := ""
		if code, ok := s.Attrs["process.exit.code"]; ok {
			note = "  exit code " + code
		}
		if s.Failed {
			note += "  error: " + s.Status
		}
		label := lead + branch + s.Name
		fmt.Fprintf(&b, "%-40s %8.2f ms  at %8.2f ms%s\n", label, ms(s.End.Sub(s.Start)), ms(s.Start.Sub(began)), note)
		switch branch {
		case "├─ ":
			lead += "│  "
		case "└─ ":
			lead += "   "
		}
		for i, c := range children[s.ID] {
			branch := "├─ "
			if i == len(children[s.ID])-1 {
				branch = "└─ "
			}
			draw(c, lead, branch)
		}
	}
	for _, s := range children[""] {
		draw(s, "", "")
	}
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
