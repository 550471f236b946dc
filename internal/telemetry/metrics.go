package telemetry

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// instruments are what the shim measures, whether or not a trace is sampled. They are
// made when there is something to measure, by the global provider: until that has been
// set, they do nothing.
type instruments struct {
	stages      metric.Float64Histogram
	lookups     metric.Int64Counter
	moduleSizes metric.Int64Histogram
	codeSizes   metric.Int64Histogram
	corrupt     metric.Int64Counter
	evicted     metric.Int64Counter
	unusable    metric.Int64Counter
	exits       metric.Int64Counter
	peaks       metric.Int64Histogram
	events      metric.Int64Counter
	spans       metric.Int64Counter
}

var (
	made     instruments
	makeOnce sync.Once
)

func instrumentation() *instruments {
	makeOnce.Do(func() { made = newInstruments(otel.Meter(scope)) })
	return &made
}

// Limits of the buckets of histograms: from half a millisecond to a minute, and from
// a page of a linear memory to as many as there can be.
var (
	stageBuckets = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
	byteBuckets  = []float64{64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30, 4 << 30}
)

func newInstruments(m metric.Meter) (i instruments) {
	check := func(err error) {
		if err != nil {
			otel.Handle(err)
		}
	}
	counter := func(name, unit, about string) metric.Int64Counter {
		c, err := m.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(about))
		check(err)
		return c
	}
	sizes := func(name, about string) metric.Int64Histogram {
		h, err := m.Int64Histogram(name, metric.WithUnit("By"), metric.WithDescription(about), metric.WithExplicitBucketBoundaries(byteBuckets...))
		check(err)
		return h
	}
	sum := func(name, unit, about string) metric.Int64ObservableUpDownCounter {
		c, err := m.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(about))
		check(err)
		return c
	}
	var err error
	i.stages, err = m.Float64Histogram(StageDuration, metric.WithUnit("s"),
		metric.WithDescription("Duration of the stages of a container's life, but for its run."),
		metric.WithExplicitBucketBoundaries(stageBuckets...))
	check(err)
	i.lookups = counter(CacheLookups, "{lookup}", "Modules that were looked up in the compile cache.")
	i.moduleSizes = sizes(CacheModuleSize, "Size of the modules that were looked up.")
	i.codeSizes = sizes(CacheCodeSize, "Size of what they were compiled to.")
	i.corrupt = counter(CacheCorruptions, "{entry}", "Entries of the compile cache that were not what had been written.")
	i.evicted = counter(CacheEvictions, "{entry}", "Entries of the compile cache that were removed to make room.")
	i.unusable = counter(CacheBypasses, "{lookup}", "Modules that were compiled for one use, as the compile cache could not be used.")
	i.exits = counter(InstanceExits, "{exit}", "Guests that have ended.")
	i.peaks = sizes(MemoryPeak, "Size that the linear memory of a guest had at its end, which is the largest it had.")
	i.events = counter(EventDropped, "{event}", "Task events that containerd will never see.")
	i.spans = counter(SpanDropped, "{span}", "Spans of instance processes and calls of guests that came to nothing.")
	count := sum(InstanceCount, "{instance}", "Guests that run.")
	usage := sum(MemoryUsage, "By", "Size of the linear memories of the guests that run.")
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		n, bytes := running.sums()
		o.ObserveInt64(count, n)
		o.ObserveInt64(usage, bytes)
		return nil
	}, count, usage)
	check(err)
	return i
}

// A stage is a span that is measured as well, when [End] ends it. A context never has
// one, but the span in it.
type stage struct {
	trace.Span
	ctx   context.Context // has the span
	name  string
	began time.Time
}

// newStage is the span of ctx, which was made with the given options just now.
func newStage(ctx context.Context, name string, opts []trace.SpanStartOption) trace.Span {
	config := trace.NewSpanStartConfig(opts...)
	s := &stage{trace.SpanFromContext(ctx), ctx, name, config.Timestamp()}
	if s.began.IsZero() {
		s.began = time.Now()
	}
	return s
}

// ended measures it.
func (s *stage) ended(err error, opts []trace.SpanEndOption) {
	config := trace.NewSpanEndConfig(opts...)
	at := config.Timestamp()
	if at.IsZero() {
		at = time.Now()
	}
	measure(s.ctx, s.name, at.Sub(s.began), classOf(err))
}

// Measure measures an operation that began at the given time, in the span of ctx, and
// has just ended with the result err.
func Measure(ctx context.Context, name string, began time.Time, err error) {
	measure(ctx, name, time.Since(began), classOf(err))
}

func classOf(err error) string {
	if err == nil {
		return ""
	}
	return ErrorTypeOf(err)
}

// measure is for all that is measured. The class of an error is one of a few, empty if
// there was none.
func measure(ctx context.Context, name string, d time.Duration, class string) {
	stages := instrumentation().stages
	// Those that last as long as the guest likes say nothing of how fast anything is.
	if name == TaskWait || name == ModuleRun || !stages.Enabled(ctx) {
		return
	}
	attrs := []attribute.KeyValue{StageName.String(name)}
	if class != "" {
		attrs = append(attrs, ErrorType.String(class))
	}
	stages.Record(ctx, d.Seconds(), metric.WithAttributes(attrs...))
}

// CacheLookup counts a module that was looked up in the compile cache, for the span of
// ctx. Sizes are in bytes.
func CacheLookup(ctx context.Context, hit bool, module, code int64) {
	i := instrumentation()
	attrs := metric.WithAttributes(CacheHit.Bool(hit))
	i.lookups.Add(ctx, 1, attrs)
	i.moduleSizes.Record(ctx, module, attrs)
	i.codeSizes.Record(ctx, code, attrs)
}

// CacheCorrupt counts an entry of the compile cache that is not what was written, and says
// so on the span of ctx.
func CacheCorrupt(ctx context.Context) {
	instrumentation().corrupt.Add(ctx, 1)
	trace.SpanFromContext(ctx).AddEvent(EventCacheCorrupt)
}

// CacheEvicted counts an entry of the compile cache that is removed to make room.
func CacheEvicted(ctx context.Context) { instrumentation().evicted.Add(ctx, 1) }

// CacheUnusable counts a module that is compiled for one use, and says so on the span of ctx.
func CacheUnusable(ctx context.Context) {
	instrumentation().unusable.Add(ctx, 1)
	trace.SpanFromContext(ctx).AddEvent(EventCacheBypassed)
}

// EventLost counts a task event that containerd will never see.
func EventLost() { instrumentation().events.Add(context.Background(), 1) }

// spansLost counts spans of an instance process, or calls of its guest, that came to
// nothing.
func spansLost(n int64) { instrumentation().spans.Add(context.Background(), n) }

// An Instance is a guest from when it may run until it has ended.
type Instance struct {
	memory func() uint64
}

// InstanceStarted counts a guest. Memory is how large its linear memory is, in bytes:
// it may be called at any time until [Instance.Exited] has returned, and must not wait
// for anything.
func InstanceStarted(memory func() uint64) *Instance {
	instrumentation()
	i := &Instance{memory}
	running.mu.Lock()
	defer running.mu.Unlock()
	if running.instances == nil {
		running.instances = map[*Instance]bool{}
	}
	running.instances[i] = true
	return i
}

// Exited counts the guest's end. Reason is one of the values of [ExitReason].
func (i *Instance) Exited(reason string) {
	running.mu.Lock()
	delete(running.instances, i)
	running.mu.Unlock()
	instruments, attrs := instrumentation(), metric.WithAttributes(ExitReason.String(reason))
	instruments.exits.Add(context.Background(), 1, attrs)
	instruments.peaks.Record(context.Background(), int64(i.memory()))
}

// running are the guests that do.
var running instances

type instances struct {
	mu        sync.Mutex
	instances map[*Instance]bool // guarded by mu
}

// sums are how many there are, and how many bytes their memories have.
func (r *instances) sums() (count, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.instances {
		bytes += int64(i.memory())
	}
	return int64(len(r.instances)), bytes
}
