package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// maxRelayed bounds what is read of one process, bytes: more than twice what all
// the spans take that it may send.
const maxRelayed = 16 * relay.MaxFrame

// relayed are the spans that a process may send, each once: which of its two
// parents they are below, and what they may say.
var relayed = map[string]struct {
	running bool // the guest's, below the span that let it run
	attrs   map[attribute.Key]attribute.Type
}{
	InstancePrepare:   {},
	ModuleTranslate:   {attrs: map[attribute.Key]attribute.Type{ModuleSize: attribute.INT64}},
	ModuleLoad:        {},
	ModuleInstantiate: {running: true},
	ModuleStart:       {running: true, attrs: map[attribute.Key]attribute.Type{ModuleFunction: attribute.STRING}},
	ModuleRun:         {running: true, attrs: map[attribute.Key]attribute.Type{ProcessExitCode: attribute.INT64}},
}

// A Relay is the end in the shim, for one instance process. What that writes may
// be anything, at any rate: it costs one buffer and at most one span of each kind.
type Relay struct {
	pipe  *os.File
	began time.Time       // no span of the process is older; of the wall clock, like theirs
	ctx   context.Context // has the span that the process was started in
	done  chan struct{}   // closed when nothing more is read

	mu      sync.Mutex
	guest   *guestRelay     // guarded by mu; nil when the guest can make no spans of its own
	running context.Context // guarded by mu; has the span that let the guest run, nil until then
	// run is the identity that module.run will have: others may be told before it ends.
	run    trace.SpanContext // guarded by mu; valid once running is not nil
	held   *relay.Frame      // guarded by mu; module.run, which waits for what its guest has sent
	sent   map[string]bool   // guarded by mu; names of spans
	ended  bool              // guarded by mu; the process has sent module.run
	failed bool              // guarded by mu; the guest trapped, or could not be entered
	// The guest was entered, and no module.run has come of it yet.
	entered bool       // guarded by mu
	started trace.Link // guarded by mu; to module.start
	since   time.Time  // guarded by mu
}

// NewRelay reads the spans of a process that is started now, in the span of ctx,
// from pipe. [Relay.Finish] ends that.
func NewRelay(ctx context.Context, pipe *os.File) *Relay {
	r := &Relay{
		pipe: pipe, began: time.Now().Round(0), ctx: context.WithoutCancel(ctx),
		done: make(chan struct{}), sent: map[string]bool{},
	}
	go r.read()
	return r
}

// Run says that the guest may run now, in the span of ctx. The environment that it
// returns names the guest's run as the parent of whatever the guest starts.
func (r *Relay) Run(ctx context.Context) []string {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = context.WithoutCancel(ctx)
	parent := trace.SpanContextFromContext(ctx)
	r.run = parent.WithSpanID(IDGenerator{}.NewSpanID(context.Background(), parent.TraceID()))
	if r.guest != nil {
		r.guest.run(r.running, r.run)
	}
	if baggage.FromContext(ctx).Len() == 0 {
		ctx = baggage.ContextWithBaggage(ctx, baggage.FromContext(r.ctx))
	}
	return environ(trace.ContextWithSpanContext(ctx, r.run))
}

// Finish is called when the process is gone. It makes the module.run span that
// a killed process could not send, with the given events. It returns a context with
// the span that the guest was let run in, or else the process started in, and the
// module.run, which may be none.
func (r *Relay) Finish(exitedAt time.Time, status int, reason error, events ...Event) (ctx context.Context, run trace.SpanContext) {
	if r == nil {
		return context.Background(), run
	}
	_ = r.pipe.SetReadDeadline(time.Now()) // see lastWords; closed already if nothing is read any more
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx = r.ctx
	if r.running != nil {
		ctx = r.running
	}
	defer func() {
		if r.sent[ModuleRun] {
			run = r.run
		}
	}()
	if r.held == nil {
		r.guest.finish(exitedAt, reason)
	} else {
		reason = nil
		if r.held.Error != "" {
			reason = errors.New(r.held.Error)
		}
		r.guest.finish(between(r.began, time.Unix(0, r.held.End), exitedAt), reason)
		r.guest.told(r.held.Attrs[relay.GuestDropped])
		r.make(*r.held)
		r.held = nil
		return ctx, run
	}
	if !r.entered {
		return ctx, run
	}
	if exitedAt.Before(r.since) {
		exitedAt = r.since
	}
	_, span := Start(r.asRun(), ModuleRun, trace.WithTimestamp(r.since), trace.WithLinks(r.started))
	span.SetAttributes(ProcessExitCode.Int(status))
	for _, e := range events {
		span.AddEvent(e.name, trace.WithTimestamp(e.at), trace.WithAttributes(e.attrs...))
	}
	r.guest.tell(span)
	End(span, reason, trace.WithTimestamp(exitedAt))
	r.entered, r.sent[ModuleRun] = false, true
	return ctx, run
}

// An Event is what has happened to a process from outside.
type Event struct {
	name  string
	at    time.Time
	attrs []attribute.KeyValue
}

// NewEvent is one that happened at the given time.
func NewEvent(name string, at time.Time, attrs ...attribute.KeyValue) Event {
	return Event{name, at, attrs}
}

// lastWords reads a pipe up to the deadline that is set when the process is gone,
// and then what is left in it. There may be no end to wait for: a process that was
// broken into may have left the pipe to another one.
type lastWords struct{ pipe *os.File }

func (l lastWords) Read(b []byte) (n int, err error) {
	n, err = l.pipe.Read(b)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	conn, err := l.pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) }); e != nil {
		return 0, e
	}
	if err != nil || n == 0 { // EAGAIN: nothing is left
		return 0, io.EOF
	}
	return n, nil
}

func (r *Relay) read() {
	defer close(r.done)
	defer r.pipe.Close()
	eachLine(io.LimitReader(lastWords{r.pipe}, maxRelayed), func(line []byte) {
		var f relay.Frame
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if line == nil || d.Decode(&f) != nil || !r.emit(f) {
			spansLost(1)
		}
	})
}

// eachLine calls take for each line that is read, to the end; with nil in place of one
// that is longer than a frame may be.
func eachLine(r io.Reader, take func(line []byte)) {
	lines := bufio.NewReaderSize(r, relay.MaxFrame)
	for tooLong := false; ; {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			tooLong = true
		case tooLong:
			tooLong = false // its end
			take(nil)
		case err == nil:
			take(line)
		}
		if err != nil && !tooLong {
			return
		}
	}
}

// emit makes the span of a frame, or tells that the frame is not in order.
func (r *Relay) emit(f relay.Frame) (ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind, known := relayed[f.Name]
	parent := r.ctx
	if kind.running {
		parent = r.running
	}
	if !known || parent == nil || r.sent[f.Name] {
		return false
	}
	r.sent[f.Name] = true
	r.ended = r.ended || f.Name == ModuleRun
	if f.Name == ModuleRun && r.guest != nil {
		r.held = &f
		return true
	}
	r.make(f)
	return true
}

// asRun is the context to make module.run in. Callers hold r.mu.
func (r *Relay) asRun() context.Context { return context.WithValue(r.running, presetKey{}, r.run) }

// make makes the span of a frame of one of the kinds there are. Callers hold r.mu.
func (r *Relay) make(f relay.Frame) {
	kind := relayed[f.Name]
	parent := r.ctx
	switch {
	case f.Name == ModuleRun:
		parent = r.asRun()
	case kind.running:
		parent = r.running
	}
	now := time.Now().Round(0)
	if now.Before(r.began) {
		now = r.began // the clock was set back
	}
	start := between(r.began, time.Unix(0, f.Start), now)
	end := between(start, time.Unix(0, f.End), now)
	opts := []trace.SpanStartOption{trace.WithTimestamp(start), trace.WithAttributes(attributes(f.Attrs, kind.attrs)...)}
	if f.Name == ModuleRun && r.entered {
		opts = append(opts, trace.WithLinks(r.started))
	}
	ctx, span := Start(parent, f.Name, opts...)
	class := ""
	if f.Error != "" {
		span.SetStatus(codes.Error, text(f.Error, relay.MaxText))
		span.SetAttributes(ErrorType.String(text(f.ErrorType, relay.MaxText)))
		class = semconv.ErrorTypeOther.Value.AsString() // the process can think of any
		r.failed = r.failed || kind.running
	}
	if f.Name == ModuleRun {
		r.guest.tell(span)
	}
	span.End(trace.WithTimestamp(end))
	measure(ctx, f.Name, end.Sub(start), class)
	switch f.Name {
	case ModuleStart:
		// Not when its run has come before it: there is none to be made then.
		r.entered, r.since = !r.sent[ModuleRun], end
		r.started = trace.LinkFromContext(ctx)
	case ModuleRun:
		r.entered = false
	}
}

// Ended is what the process has said of its guest's end, when all of it has been read:
// that there was one, or that it was a failure.
func (r *Relay) Ended() (ended, failed bool) {
	if r == nil {
		return false, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended, r.failed
}

// between is t, or the end of the range that is nearer.
func between(from, t, to time.Time) time.Time {
	switch {
	case t.Before(from):
		return from
	case t.After(to):
		return to
	}
	return t
}

// attributes are those of m that are allowed.
func attributes(m map[string]any, allowed map[attribute.Key]attribute.Type) (attrs []attribute.KeyValue) {
	for k, t := range allowed {
		switch v := m[string(k)].(type) {
		case string:
			if t == attribute.STRING {
				attrs = append(attrs, k.String(text(v, relay.MaxText)))
			}
		case json.Number:
			if n, err := v.Int64(); err == nil && t == attribute.INT64 {
				attrs = append(attrs, k.Int64(n))
			}
		}
	}
	return attrs
}
