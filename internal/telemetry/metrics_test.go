package telemetry

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// figuresOf starts measuring. What it returns are the figures since then, each by the
// name of the metric and the values of its attributes: a sum, or for a histogram how
// many there were.
func figuresOf(t *testing.T) (figures func() map[string]int64, data func() map[string]metricdata.Metrics) {
	t.Helper()
	data = measured(t)
	makeOnce.Do(func() {})
	made = newInstruments(otel.Meter(scope))
	t.Cleanup(func() { made = newInstruments(noop.Meter{}) })
	figures = func() map[string]int64 {
		t.Helper()
		got := map[string]int64{}
		for name, m := range data() {
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					got[figure(name, p.Attributes.ToSlice())] = p.Value
				}
			case metricdata.Histogram[int64]:
				for _, p := range d.DataPoints {
					got[figure(name, p.Attributes.ToSlice())] = int64(p.Count)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					got[figure(name, p.Attributes.ToSlice())] = int64(p.Count)
				}
			default:
				t.Fatalf("%s is a %T", name, d)
			}
		}
		for _, name := range []string{InstanceCount, MemoryUsage} {
			if got[name] == 0 {
				delete(got, name) // always there
			}
		}
		return got
	}
	return figures, data
}

// figure is the name of a metric and the values of attributes, in the order of their keys.
func figure(name string, attrs []attribute.KeyValue) string {
	for _, kv := range attrs {
		name += " " + kv.Value.String()
	}
	return name
}

func compare(t *testing.T, got, want map[string]int64) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEveryStageIsMeasuredSampledOrNot(t *testing.T) {
	for _, sampler := range []sdktrace.Sampler{sdktrace.AlwaysSample(), sdktrace.NeverSample()} {
		t.Run(sampler.Description(), func(t *testing.T) {
			figures, data := figuresOf(t)
			provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler))
			began := time.Now().Add(-time.Second)
			ctx, _ := StartOperation(context.Background(), provider, TaskCreate)
			for _, err := range []error{nil, nil, errdefs.ErrInvalidArgument} {
				_ = Stage(ctx, BundleLoad, func(context.Context) error { return err })
			}
			_, span := Start(ctx, RootfsMount, trace.WithTimestamp(began))
			End(span, nil, trace.WithTimestamp(began.Add(20*time.Second)))
			for _, name := range []string{TaskCreate, TaskWait, ModuleRun} { // the last two take what the guest likes
				Measure(ctx, name, began, nil)
			}
			compare(t, figures(), map[string]int64{
				StageDuration + " bundle.load":                  2,
				StageDuration + " INVALID_ARGUMENT bundle.load": 1,
				StageDuration + " rootfs.mount":                 1,
				StageDuration + " task.create":                  1,
			})
			for _, p := range data()[StageDuration].Data.(metricdata.Histogram[float64]).DataPoints {
				name, _ := p.Attributes.Value(StageName)
				if name.AsString() == RootfsMount && p.Sum != 20 {
					t.Errorf("%s took %v s, want the 20 of its span", RootfsMount, p.Sum)
				}
				if name.AsString() == TaskCreate && (p.Sum < 1 || p.Sum > 60) {
					t.Errorf("%s took %v s, want 1", TaskCreate, p.Sum)
				}
				if got, want := len(p.Exemplars) > 0, trace.SpanContextFromContext(ctx).IsSampled(); got != want {
					t.Errorf("%s has an exemplar: %t, want %t", name.AsString(), got, want)
				}
			}
		})
	}
}

func TestWithoutASpanNothingIsMeasured(t *testing.T) {
	figures, _ := figuresOf(t)
	_ = Stage(context.Background(), BundleLoad, func(context.Context) error { return nil })
	compare(t, figures(), map[string]int64{})
}

func TestTheContextOfAStageHasItsSpan(t *testing.T) {
	recorder, provider := newProvider()
	ctx, _ := StartOperation(context.Background(), provider, TaskCreate)
	ctx, span := Start(ctx, ModuleResolve)
	trace.SpanFromContext(ctx).SetAttributes(CacheHit.Bool(true))
	span.SetAttributes(ModuleSize.Int(7))
	End(span, nil)
	got := attrs(recorder.Ended()[0])
	if got[CacheHit] != true || got[ModuleSize] != int64(7) {
		t.Errorf("got %v, want what both have said", got)
	}
}

func TestTheStartOfTheShimIsMeasured(t *testing.T) {
	figures, data := figuresOf(t)
	_, provider := newProvider()
	StartShim(context.Background(), provider, booted(time.Now().Add(-3*time.Second)))
	compare(t, figures(), map[string]int64{
		StageDuration + " shim.start": 1, StageDuration + " shim.listen": 1, StageDuration + " shim.serve": 1,
	})
	for _, p := range data()[StageDuration].Data.(metricdata.Histogram[float64]).DataPoints {
		if name, _ := p.Attributes.Value(StageName); name.AsString() == ShimStart && (p.Sum < 3 || p.Sum > 60) {
			t.Errorf("it took %v s, want 3", p.Sum)
		}
	}
}

func TestStagesOfAnInstanceProcessAreMeasuredAndWhatIsNotInOrderIsCounted(t *testing.T) {
	figures, _ := figuresOf(t)
	rt := newRelayTest(t)
	failed := rt.frame(ModuleLoad)
	failed.Error, failed.ErrorType = "no", "one of very many"
	rt.send(t, rt.frame(InstancePrepare), failed, rt.frame(ModuleStart), rt.frame(ModuleRun))
	rt.send(t, rt.frame(ModuleStart), relay.Frame{Name: "task.create"}) // again; not its to send
	rt.write(t, "{\n"+strings.Repeat("x", 3*relay.MaxFrame)+"\n\n")
	rt.w.Close()
	rt.Finish(time.Now(), 0, nil)
	compare(t, figures(), map[string]int64{
		StageDuration + " instance.prepare":   1,
		StageDuration + " _OTHER module.load": 1,
		StageDuration + " module.start":       1,
		SpanDropped:                           5,
	})
}

func TestTheLookupsOfTheCacheAreCounted(t *testing.T) {
	figures, data := figuresOf(t)
	CacheLookup(t.Context(), false, 100, 1000)
	CacheLookup(t.Context(), true, 100, 1000)
	CacheLookup(t.Context(), true, 200, 3000)
	compare(t, figures(), map[string]int64{
		CacheLookups + " false": 1, CacheModuleSize + " false": 1, CacheCodeSize + " false": 1,
		CacheLookups + " true": 2, CacheModuleSize + " true": 2, CacheCodeSize + " true": 2,
	})
	for name, want := range map[string]int64{CacheModuleSize: 300, CacheCodeSize: 4000} {
		for _, p := range data()[name].Data.(metricdata.Histogram[int64]).DataPoints {
			if hit, _ := p.Attributes.Value(CacheHit); hit.AsBool() && p.Sum != want {
				t.Errorf("%s: %d bytes found, want %d", name, p.Sum, want)
			}
		}
	}
}

func TestGuestsAreCountedWhileTheyRunAndByHowTheyEnd(t *testing.T) {
	figures, data := figuresOf(t)
	sizes := []uint64{1 << 16, 1 << 20}
	one := InstanceStarted(func() uint64 { return sizes[0] })
	two := InstanceStarted(func() uint64 { return sizes[1] })
	compare(t, figures(), map[string]int64{InstanceCount: 2, MemoryUsage: 1<<16 + 1<<20})
	sizes[0] = 1 << 17
	compare(t, figures(), map[string]int64{InstanceCount: 2, MemoryUsage: 1<<17 + 1<<20})
	one.Exited(ExitTrap)
	compare(t, figures(), map[string]int64{InstanceCount: 1, MemoryUsage: 1 << 20, InstanceExits + " trap": 1, MemoryPeak: 1})
	two.Exited(ExitZero)
	compare(t, figures(), map[string]int64{InstanceExits + " trap": 1, InstanceExits + " zero": 1, MemoryPeak: 2})
	if got := data()[MemoryPeak].Data.(metricdata.Histogram[int64]).DataPoints[0].Sum; got != 1<<17+1<<20 {
		t.Errorf("peaks of %d bytes, want %d", got, 1<<17+1<<20)
	}
}

func TestDroppedEventsAreCounted(t *testing.T) {
	figures, _ := figuresOf(t)
	EventLost()
	EventLost()
	compare(t, figures(), map[string]int64{EventDropped: 2})
}

// What a guest's process says of its end is told to who counts exits.
func TestTheRelayTellsHowAGuestEnded(t *testing.T) {
	const failure = "unreachable"
	for _, tt := range []struct {
		name          string
		frames        []relay.Frame
		ended, failed bool
	}{
		{"killed", []relay.Frame{{Name: ModuleStart}}, false, false},
		{"exited", []relay.Frame{{Name: ModuleStart}, {Name: ModuleRun}}, true, false},
		{"trapped", []relay.Frame{{Name: ModuleStart}, {Name: ModuleRun, Error: failure}}, true, true},
		{"trapped at once", []relay.Frame{{Name: ModuleInstantiate, Error: failure}}, false, true},
		{"never loaded", []relay.Frame{{Name: ModuleLoad, Error: failure}}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rt := newRelayTest(t)
			rt.send(t, tt.frames...)
			rt.Finish(time.Now(), 0, nil)
			if ended, failed := rt.Ended(); ended != tt.ended || failed != tt.failed {
				t.Errorf("got %t, %t, want %t, %t", ended, failed, tt.ended, tt.failed)
			}
		})
	}
	var none *Relay
	if ended, failed := none.Ended(); ended || failed {
		t.Error("a guest that is not traced has ended")
	}
}
