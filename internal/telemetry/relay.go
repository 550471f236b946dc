package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

const (
	maxFrames     = 64 // spans of one process
	maxAttributes = 16 // attributes of a span
)

// relayed are the spans that a process may send.
var relayed = map[string]bool{
	InstancePrepare: true, ModuleCompile: true, ModuleLoad: true,
	ModuleInstantiate: true, ModuleStart: true, ModuleRun: true,
}

// A Relay is the end in the shim, for one instance process.
type Relay struct {
	pipe *os.File
	done chan struct{} // closed when the pipe has ended

	mu      sync.Mutex
	parents map[string]context.Context // guarded by mu; by the TRACECONTEXT given out
	// The guest was entered, and no module.run has come of it yet.
	entered context.Context // guarded by mu; the parent of module.start
	started trace.Link      // guarded by mu; to module.start
	since   time.Time       // guarded by mu
}

// NewRelay reads from pipe until its other end is closed, which it is when the
// instance process is gone. [Relay.Finish] waits for that.
func NewRelay(pipe *os.File) *Relay {
	r := &Relay{pipe: pipe, done: make(chan struct{}), parents: map[string]context.Context{}}
	go r.read()
	return r
}

// Offer lets the process name the span of ctx as a parent, and returns the value
// of [TraceContextEnv] for it. Offer of a nil Relay returns nothing.
func (r *Relay) Offer(ctx context.Context) string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	value := Inject(ctx)
	r.parents[value] = context.WithoutCancel(ctx)
	return value
}

// Finish is called when the process is gone. It makes the module.run span that
// a killed process could not send.
func (r *Relay) Finish(exitedAt time.Time, status int, reason error) {
	if r == nil {
		return
	}
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entered == nil {
		return
	}
	if exitedAt.Before(r.since) {
		exitedAt = r.since
	}
	_, span := Start(r.entered, ModuleRun, trace.WithTimestamp(r.since), trace.WithLinks(r.started))
	span.SetAttributes(ProcessExitCode.Int(status))
	End(span, reason, trace.WithTimestamp(exitedAt))
	r.entered = nil
}

func (r *Relay) read() {
	defer close(r.done)
	defer r.pipe.Close()
	lines := bufio.NewReaderSize(r.pipe, relay.MaxFrame)
	for n := 0; n < maxFrames; n++ {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return // the process is gone, or the line is none of ours
		}
		var f relay.Frame
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if d.Decode(&f) == nil {
			r.emit(f)
		}
	}
}

// emit makes the span of a frame, or none when the frame is not in order.
func (r *Relay) emit(f relay.Frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parent, ok := r.parents[f.Parent]
	if !ok || !relayed[f.Name] || f.Start <= 0 || f.End < f.Start || len(f.Attrs) > maxAttributes {
		return
	}
	start, end := time.Unix(0, f.Start), time.Unix(0, f.End)
	if end.After(time.Now().Add(time.Second)) {
		return
	}
	opts := []trace.SpanStartOption{trace.WithTimestamp(start), trace.WithAttributes(attributes(f.Attrs)...)}
	if f.Name == ModuleRun && r.entered != nil {
		opts = append(opts, trace.WithLinks(r.started))
	}
	ctx, span := Start(parent, f.Name, opts...)
	if f.Error != "" {
		span.SetStatus(codes.Error, f.Error)
		span.SetAttributes(ErrorType.String(f.ErrorType))
	}
	span.End(trace.WithTimestamp(end))
	switch f.Name {
	case ModuleStart:
		r.entered, r.since = parent, end
		r.started = trace.LinkFromContext(ctx)
	case ModuleRun:
		r.entered = nil
	}
}

func attributes(m map[string]any) []attribute.KeyValue {
	attrs := make([]attribute.KeyValue, 0, len(m))
	for k, v := range m {
		switch v := v.(type) {
		case string:
			attrs = append(attrs, attribute.String(k, v))
		case bool:
			attrs = append(attrs, attribute.Bool(k, v))
		case json.Number:
			if n, err := v.Int64(); err == nil {
				attrs = append(attrs, attribute.Int64(k, n))
			}
		}
	}
	return attrs
}
