package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// guestScope is the instrumentation scope of what guests make: whatever that is
// called, it is told from what the shim says.
const guestScope = scope + "/guest"

const (
	// guestBytes bounds what is read of one process, bytes a second in the long run,
	// and guestBytesBurst at once. What is not read yet is in the pipe; when that is
	// full, the process drops what its guest says.
	guestBytes, guestBytesBurst = 128 << 10, 512 << 10
	// guestLeft bounds what is read once the process is gone: what a pipe holds.
	guestLeft = 64 << 10
	// maxSpanBytes bounds the name, tags and logs of one span, and of a run: they are
	// held until it ends and, after that, until it is exported.
	maxSpanBytes = 4 << 10
	// maxSpanName bounds the name of a span, bytes.
	maxSpanName = 256
)

// allGuests bounds what comes of all the guests of this shim together, so that in the
// queue of the exporter, which is of 2048 spans, there is room for what the shim says.
var allGuests = sync.OnceValue(newAllGuests)

func newAllGuests() *rate.Limiter { return rate.NewLimiter(10*relay.GuestRate, 2*relay.GuestBurst) }

// reserved begin the keys, and the names of metrics, that only the shim says something
// by.
var reserved = []string{"container.", "containerd.", "k8s.", "process.", "wasm.", "service.", "telemetry.", "otel.", "rpc."}

func isReserved(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(reserved, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// A guestRelay is the end in the shim of the pipe for what the guest of one instance
// process sends. What comes may be anything, at any rate: it costs one buffer, a
// bounded time, and the spans that are open, of which each is bounded.
//
// A guest does not say what its spans are below: the first are below module.run, and
// each other is below the one that is open.
type guestRelay struct {
	pipe  *os.File
	bytes *rate.Limiter
	calls *rate.Limiter
	ctx   context.Context // done when the process is gone
	gone  context.CancelFunc
	done  chan struct{} // closed when nothing more is read
	left  int           // how much more is read, once the process is gone

	mu sync.Mutex
	// What follows is guarded by mu.
	all     *rate.Limiter // calls of all guests
	tracer  trace.Tracer  // nil until the guest runs
	metrics guestMetrics
	began   time.Time   // the guest runs since then
	open    []guestSpan // innermost last; depths increase
	root    guestSpan   // the run: what is said of it waits for its span
	events  []guestEvent
	said    []attribute.KeyValue
	own     int64 // calls dropped here
	theirs  int64 // calls dropped in the process, as it says
}

type guestSpan struct {
	span  trace.Span
	ctx   context.Context
	depth int
	began time.Time
	bytes int
}

type guestEvent struct {
	name string
	opts []trace.EventOption
}

// Guest reads what the guest sends by another pipe. It must be called before Run;
// [Relay.Finish] ends it.
func (r *Relay) Guest(pipe *os.File) {
	g := &guestRelay{
		pipe: pipe, done: make(chan struct{}), left: guestLeft,
		bytes: rate.NewLimiter(guestBytes, guestBytesBurst),
		// What was sent at an even rate may arrive all at once.
		calls: rate.NewLimiter(relay.GuestRate, 2*relay.GuestBurst),
		all:   allGuests(),
	}
	g.ctx, g.gone = context.WithCancel(context.Background())
	r.mu.Lock()
	r.guest = g
	r.mu.Unlock()
	go g.read()
}

// run says that the guest runs now, in the span run, which is made later by the provider
// of the one of ctx.
func (g *guestRelay) run(ctx context.Context, run trace.SpanContext) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tracer = trace.SpanFromContext(ctx).TracerProvider().Tracer(guestScope)
	g.metrics.attrs = metricAttributes(ctx)
	g.began = time.Now().Round(0)
	g.root = guestSpan{ctx: trace.ContextWithSpanContext(ctx, run), began: g.began}
}

// finish is called when the process is gone. It ends the spans that are open.
func (g *guestRelay) finish(exitedAt time.Time, reason error) {
	if g == nil {
		return
	}
	_ = g.pipe.SetReadDeadline(time.Now()) // see lastWords
	g.gone()
	<-g.done
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := len(g.open) - 1; i >= 0; i-- {
		s := g.open[i]
		s.span.SetAttributes(GuestUnfinished.Bool(true))
		if reason != nil {
			s.span.SetStatus(codes.Error, text(reason.Error(), relay.MaxText))
		}
		s.span.End(trace.WithTimestamp(between(s.began, exitedAt, maxTime)))
	}
	g.open = nil
}

// told takes the process's last word on how much it has dropped.
func (g *guestRelay) told(dropped any) {
	n, ok := dropped.(json.Number)
	if g == nil || !ok {
		return
	}
	if n, err := n.Int64(); err == nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.count(n)
	}
}

// count takes how many calls the process says it has dropped. Callers hold g.mu.
func (g *guestRelay) count(theirs int64) { g.theirs = max(g.theirs, min(theirs, 1<<53)) }

// tell adds to the span of the run what the guest has said of it.
func (g *guestRelay) tell(run trace.Span) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	run.SetAttributes(g.said...)
	for _, e := range g.events {
		run.AddEvent(e.name, e.opts...)
	}
	if n := g.own + g.theirs; n > 0 {
		run.SetAttributes(GuestDropped.Int64(n))
		spansLost(n)
	}
}

// Read reads the pipe: to its end or, once the process is gone, what is left in it.
func (g *guestRelay) Read(b []byte) (int, error) {
	gone := g.ctx.Err() != nil
	if gone && g.left <= 0 {
		return 0, io.EOF
	}
	n, err := lastWords{g.pipe}.Read(b)
	if gone {
		g.left -= n
	}
	_ = g.bytes.WaitN(g.ctx, n) // fails when the process is gone: there is little left then
	return n, err
}

func (g *guestRelay) read() {
	defer close(g.done)
	defer g.pipe.Close()
	eachLine(g, func(line []byte) {
		var f relay.GuestFrame
		if line != nil && json.NewDecoder(bytes.NewReader(line)).Decode(&f) == nil {
			g.take(f)
		}
	})
}

// take does what a frame says, or nothing when it is not in order.
func (g *guestRelay) take(f relay.GuestFrame) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tracer == nil || f.Depth < 0 || f.Depth > relay.MaxDepth {
		return
	}
	g.count(f.Dropped)
	now := time.Now().Round(0)
	if now.Before(g.began) {
		now = g.began // the clock was set back
	}
	at := between(g.began, time.Unix(0, f.At), now)
	if f.Call == relay.SpanExit {
		if f.Depth > 0 {
			g.unwind(f.Depth, at) // those further in, if there are any, have ended before
		}
		return
	}
	if !g.calls.AllowN(now, 1) || !g.all.AllowN(now, 1) {
		g.own++
		return
	}
	switch f.Call {
	case relay.SpanEnter:
		if f.Depth == 0 {
			g.own++
			return
		}
		g.unwind(f.Depth, at)
		g.enter(f, at)
	case relay.SpanTags:
		g.unwind(f.Depth+1, at)
		g.tags(f)
	case relay.Log:
		g.unwind(f.Depth+1, at)
		if !g.log(f, at) {
			g.own++
		}
	case relay.Metric:
		if f.Level != statsd || !g.metrics.record(g.root.ctx, text(f.Text, relay.MaxText)) {
			g.own++
		}
	}
}

// unwind ends the open spans of the given depth and deeper.
func (g *guestRelay) unwind(depth int, at time.Time) {
	for i := len(g.open) - 1; i >= 0 && g.open[i].depth >= depth; i-- {
		s := g.open[i]
		s.span.End(trace.WithTimestamp(between(s.began, at, maxTime)))
		g.open = g.open[:i]
	}
}

// maxTime is after all times.
var maxTime = time.Unix(1<<40, 0)

func (g *guestRelay) innermost() *guestSpan {
	if n := len(g.open); n > 0 {
		return &g.open[n-1]
	}
	return &g.root
}

func (g *guestRelay) enter(f relay.GuestFrame, at time.Time) {
	parent := g.innermost()
	name := text(f.Text, maxSpanName)
	if name == "" {
		name = "unnamed"
	}
	s := guestSpan{depth: f.Depth, began: between(parent.began, at, maxTime), bytes: len(name)}
	s.ctx, s.span = start(parent.ctx, g.tracer, name, []trace.SpanStartOption{trace.WithTimestamp(s.began)})
	g.open = append(g.open, s)
}

// tags sets attributes: KEY:VALUE, separated by commas.
func (g *guestRelay) tags(f relay.GuestFrame) {
	s := g.innermost()
	for _, tag := range strings.Split(text(f.Text, relay.MaxText), ",") {
		kv, ok := guestTag(tag)
		if !ok || s.depth != f.Depth || s.bytes+len(tag) > maxSpanBytes {
			g.own++
			continue
		}
		s.bytes += len(tag)
		if s.span == nil {
			g.said = append(g.said, kv)
		} else {
			s.span.SetAttributes(kv)
		}
	}
}

// guestTag is the attribute that a guest's tag makes, KEY:VALUE or KEY alone, which is
// true. Keys that the shim says something by are not a guest's.
func guestTag(tag string) (attribute.KeyValue, bool) {
	key, value, found := strings.Cut(tag, ":")
	if key = strings.TrimSpace(key); key == "" {
		return attribute.KeyValue{}, false
	}
	if isReserved(key) {
		return attribute.KeyValue{}, false
	}
	if !found {
		return attribute.Bool(key, true), true
	}
	return attribute.String(key, value), true
}

// logLevels are what a guest's numbers mean.
var logLevels = []string{"unknown", "error", "warn", "info", "debug", "trace"}

func (g *guestRelay) log(f relay.GuestFrame, at time.Time) bool {
	s := g.innermost()
	message := text(f.Text, relay.MaxText)
	if s.bytes+len(message) > maxSpanBytes {
		return false
	}
	s.bytes += len(message) + 64 // an event without a word takes some too
	level := logLevels[0]
	if int64(f.Level) < int64(len(logLevels)) {
		level = logLevels[f.Level]
	}
	e := guestEvent{GuestLog, []trace.EventOption{
		trace.WithTimestamp(between(s.began, at, maxTime)),
		trace.WithAttributes(GuestLogLevel.String(level), GuestLogMessage.String(message)),
	}}
	if s.span == nil {
		g.events = append(g.events, e)
	} else {
		s.span.AddEvent(e.name, e.opts...)
	}
	return true
}
