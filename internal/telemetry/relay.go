package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
)

// The instance process cannot reach a collector from its namespaces. It writes
// each span, once it has ended, as a line of JSON to a pipe it inherits; the shim
// reads it and makes the span.
//
// The shim trusts none of it: a frame names its parent by a span id that the
// shim handed out, and everything else in it is bounded.
const (
	maxFrame      = 32 << 10 // bytes of a line
	maxFrames     = 64       // spans of one process
	maxAttributes = 16       // attributes of a span
)

type frame struct {
	Name      string         `json:"name"`
	Parent    string         `json:"parent"` // span id, 16 hexadecimal digits
	Start     int64          `json:"start"`  // nanoseconds since 1970
	End       int64          `json:"end"`
	Attrs     map[string]any `json:"attrs,omitempty"` // strings, booleans, whole numbers
	Error     string         `json:"error,omitempty"`
	ErrorType string         `json:"errorType,omitempty"`
}

// relayed are the names a frame may have.
var relayed = map[string]bool{
	InstancePrepare: true, ModuleCompile: true, ModuleLoad: true,
	ModuleInstantiate: true, ModuleStart: true, ModuleRun: true,
}

// A Recorder is the end of the relay in the instance process. A nil one records
// nothing.
type Recorder struct {
	pipe   *os.File
	parent string
}

// NewRecorder records to pipe, under the span that the value of
// [TraceContextEnv] names. It is nil when that names none.
func NewRecorder(pipe *os.File, traceContext string) (*Recorder, error) {
	r := &Recorder{pipe: pipe}
	if !r.Under(traceContext) {
		return nil, nil
	}
	// A shim that does not read must not hold up the guest.
	if err := unix.SetNonblock(int(pipe.Fd()), true); err != nil {
		return nil, err
	}
	return r, nil
}

// Under makes the span that traceContext names the parent of those to come, and
// tells whether it names one.
func (r *Recorder) Under(traceContext string) bool {
	if r == nil {
		return false
	}
	sc := trace.SpanContextFromContext(Extract(context.Background(), traceContext))
	if !sc.IsValid() {
		return false
	}
	r.parent = sc.SpanID().String()
	return true
}

// Record writes a span that began at start and ends now. One that the pipe has
// no room for is lost.
func (r *Recorder) Record(name string, start time.Time, err error, attrs ...attribute.KeyValue) {
	if r == nil {
		return
	}
	f := frame{Name: name, Parent: r.parent, Start: start.UnixNano(), End: time.Now().UnixNano()}
	if err != nil {
		f.Error, f.ErrorType = cut(err.Error(), 4<<10), errorType(err)
	}
	for _, a := range attrs {
		if f.Attrs == nil {
			f.Attrs = make(map[string]any, len(attrs))
		}
		f.Attrs[string(a.Key)] = a.Value.AsInterface()
	}
	line, err := json.Marshal(f)
	if err != nil || len(line) >= maxFrame {
		return
	}
	// One write of the descriptor itself: os.File would wait for room.
	_, _ = unix.Write(int(r.pipe.Fd()), append(line, '\n'))
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// A Relay is the end in the shim, for one instance process.
type Relay struct {
	pipe *os.File
	done chan struct{} // closed when the pipe has ended

	mu      sync.Mutex
	parents map[string]context.Context // guarded by mu; by span id
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
	r.parents[trace.SpanContextFromContext(ctx).SpanID().String()] = context.WithoutCancel(ctx)
	return Inject(ctx)
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
	_, span := Start(r.entered, ModuleRun, trace.WithTimestamp(r.since), trace.WithLinks(r.started))
	span.SetAttributes(ProcessExitCode.Int(status))
	End(span, reason, trace.WithTimestamp(exitedAt))
	r.entered = nil
}

func (r *Relay) read() {
	defer close(r.done)
	defer r.pipe.Close()
	lines := bufio.NewReaderSize(r.pipe, maxFrame)
	for n := 0; n < maxFrames; n++ {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				return // not one of ours; the process may write to a closed pipe
			}
			return
		}
		var f frame
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if d.Decode(&f) == nil {
			r.emit(f)
		}
	}
}

// emit makes the span of a frame, or none when the frame is not in order.
func (r *Relay) emit(f frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parent, ok := r.parents[f.Parent]
	if !ok || !relayed[f.Name] || f.Start <= 0 || f.End < f.Start || len(f.Attrs) > maxAttributes {
		return
	}
	start, end := time.Unix(0, f.Start), time.Unix(0, f.End)
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
