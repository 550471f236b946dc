package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// A relayed process, as the shim sees it.
type relayTest struct {
	*Relay
	w        *os.File // the process's end of the pipe
	recorder *tracetest.SpanRecorder
	parent   trace.Span
	offered  string // the parent, as the process names it
	provider *sdktrace.TracerProvider
}

func newRelayTest(t testing.TB) *relayTest {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	rt := &relayTest{Relay: NewRelay(r), w: w}
	rt.recorder, rt.provider = newProvider()
	var ctx context.Context
	ctx, rt.parent = StartOperation(context.Background(), rt.provider, TaskStart)
	rt.offered = rt.Offer(ctx)
	return rt
}

func (rt *relayTest) send(t *testing.T, frames ...relay.Frame) {
	t.Helper()
	for _, f := range frames {
		line, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		rt.write(t, string(line)+"\n")
	}
}

func (rt *relayTest) write(t *testing.T, s string) {
	t.Helper()
	if _, err := rt.w.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

// frame is one in order.
func (rt *relayTest) frame(name string) relay.Frame {
	return relay.Frame{Name: name, Parent: rt.offered, Start: 1_000_000_001, End: 2_000_000_002}
}

// end has the process exit with status 137 at 9 s, and returns the spans made.
func (rt *relayTest) end() []sdktrace.ReadOnlySpan {
	rt.w.Close()
	rt.Finish(time.Unix(9, 0), 137, errors.New("ended by signal 9"))
	return rt.recorder.Ended()
}

func names(spans []sdktrace.ReadOnlySpan) (names []string) {
	for _, s := range spans {
		names = append(names, s.Name())
	}
	return names
}

func TestAFrameBecomesASpanUnderTheParentThatWasOffered(t *testing.T) {
	rt := newRelayTest(t)
	f := rt.frame(relay.ModuleCompile)
	f.Attrs = map[string]any{"text": "x", "yes": true, "number": 1 << 60, "float": 1.5, "none": nil, "list": []int{1}}
	f.Error, f.ErrorType = "invalid module", "*errors.errorString"
	rt.send(t, f, rt.frame(relay.InstancePrepare))
	spans := rt.end()
	if got, want := names(spans), []string{ModuleCompile, InstancePrepare}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	span := spans[0]
	if got, want := span.Parent(), rt.parent.SpanContext(); !got.Equal(want) {
		t.Errorf("got parent %v, want %v", got, want)
	}
	if !span.StartTime().Equal(time.Unix(1, 1)) || !span.EndTime().Equal(time.Unix(2, 2)) {
		t.Errorf("got %v to %v", span.StartTime(), span.EndTime())
	}
	want := map[attribute.Key]any{"text": "x", "yes": true, "number": int64(1 << 60), ErrorType: "*errors.errorString"}
	if got := attrs(span); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := span.Status(), (sdktrace.Status{Code: codes.Error, Description: "invalid module"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := spans[1].Status().Code, codes.Unset; got != want {
		t.Errorf("without an error: got %v, want %v", got, want)
	}
}

func TestEachFrameIsUnderTheParentItNames(t *testing.T) {
	rt := newRelayTest(t)
	ctx, later := StartOperation(context.Background(), rt.provider, TaskStart)
	f := rt.frame(relay.ModuleStart)
	f.Parent = rt.Offer(ctx)
	rt.send(t, rt.frame(relay.ModuleLoad), f)
	spans := rt.end()
	if got, want := spans[0].Parent().SpanID(), rt.parent.SpanContext().SpanID(); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, span := range spans[1:] {
		if got, want := span.Parent().SpanID(), later.SpanContext().SpanID(); got != want {
			t.Errorf("%s: got %v, want %v", span.Name(), got, want)
		}
	}
}

func TestAFrameThatIsNotInOrderIsDropped(t *testing.T) {
	many := map[string]any{}
	for i := range maxAttributes + 1 {
		many[fmt.Sprint(i)] = i
	}
	for name, change := range map[string]func(f *relay.Frame){
		"a parent that was not offered": func(f *relay.Frame) { f.Parent = traceparent },
		"the traceparent of the offered one alone": func(f *relay.Frame) {
			sc := trace.SpanContextFromContext(Extract(context.Background(), f.Parent))
			f.Parent = fmt.Sprintf("00-%s-%s-01", sc.TraceID(), sc.SpanID())
		},
		"no parent":               func(f *relay.Frame) { f.Parent = "" },
		"no name":                 func(f *relay.Frame) { f.Name = "" },
		"an unknown name":         func(f *relay.Frame) { f.Name = "module.nonsense" },
		"a name of the shim's":    func(f *relay.Frame) { f.Name = TaskStart },
		"an end before its start": func(f *relay.Frame) { f.End = f.Start - 1 },
		"no start":                func(f *relay.Frame) { f.Start = 0 },
		"a start before 1970":     func(f *relay.Frame) { f.Start = -1 },
		"too many attributes":     func(f *relay.Frame) { f.Attrs = many },
	} {
		t.Run(name, func(t *testing.T) {
			rt := newRelayTest(t)
			f := rt.frame(relay.ModuleLoad)
			change(&f)
			rt.send(t, f, rt.frame(relay.ModuleInstantiate))
			if got, want := names(rt.end()), []string{ModuleInstantiate}; !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestAsManyAttributesAsThereMayBeAreKept(t *testing.T) {
	rt := newRelayTest(t)
	f := rt.frame(relay.ModuleLoad)
	f.Attrs = map[string]any{}
	for i := range maxAttributes {
		f.Attrs[fmt.Sprint(i)] = i
	}
	rt.send(t, f)
	spans := rt.end()
	if len(spans) != 1 || len(spans[0].Attributes()) != maxAttributes {
		t.Errorf("got %v, want one span with %d attributes", spans, maxAttributes)
	}
}

func TestALineThatIsNoFrameIsDropped(t *testing.T) {
	for _, line := range []string{"", "hello", "{", "null", "[]", "1", `{"name":1}`, `{"start":1.5}`, `{"start":1e99}`, "\x00\xff", `{"attrs":"x"}`} {
		t.Run(line, func(t *testing.T) {
			rt := newRelayTest(t)
			rt.write(t, line+"\n")
			rt.send(t, rt.frame(relay.ModuleLoad))
			if got, want := names(rt.end()), []string{ModuleLoad}; !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestALineThatDoesNotEndIsDropped(t *testing.T) {
	rt := newRelayTest(t)
	rt.send(t, rt.frame(relay.ModuleLoad))
	line, err := json.Marshal(rt.frame(relay.ModuleInstantiate))
	if err != nil {
		t.Fatal(err)
	}
	rt.write(t, string(line))
	if got, want := names(rt.end()), []string{ModuleLoad}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTheLongestFrameIsReadAndALongerLineEndsTheRelay(t *testing.T) {
	for _, tt := range []struct {
		length int // with its end
		want   []string
	}{
		{relay.MaxFrame, []string{ModuleLoad, ModuleInstantiate}},
		{relay.MaxFrame + 1, nil},
		{10 * relay.MaxFrame, nil},
	} {
		t.Run(fmt.Sprint(tt.length), func(t *testing.T) {
			rt := newRelayTest(t)
			line, err := json.Marshal(rt.frame(relay.ModuleLoad))
			if err != nil {
				t.Fatal(err)
			}
			// The relay may hang up before all is written.
			_, _ = rt.w.WriteString(string(line) + strings.Repeat(" ", tt.length-len(line)-1) + "\n")
			line, err = json.Marshal(rt.frame(relay.ModuleInstantiate))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = rt.w.WriteString(string(line) + "\n")
			if got := names(rt.end()); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAProcessHasSoManySpansAndIsNotHeldUpForMore(t *testing.T) {
	rt := newRelayTest(t)
	line, err := json.Marshal(rt.frame(relay.ModuleLoad))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 * maxFrames { // more than the pipe holds
		if _, err := rt.w.WriteString(string(line) + "\n"); err != nil {
			break
		}
	}
	if got, want := len(rt.end()), maxFrames; got != want {
		t.Errorf("got %d spans, want %d", got, want)
	}
}

func TestAKilledRunHasASpanThatTheProcessCouldNotSend(t *testing.T) {
	rt := newRelayTest(t)
	rt.send(t, rt.frame(relay.ModuleStart))
	spans := rt.end()
	if got, want := names(spans), []string{ModuleStart, ModuleRun}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	start, run := spans[0], spans[1]
	if got, want := run.Parent(), rt.parent.SpanContext(); !got.Equal(want) {
		t.Errorf("got parent %v, want %v", got, want)
	}
	if !run.StartTime().Equal(start.EndTime()) || !run.EndTime().Equal(time.Unix(9, 0)) {
		t.Errorf("got %v to %v, want from the end of module.start to the exit", run.StartTime(), run.EndTime())
	}
	if got, want := attrs(run)[ProcessExitCode], any(int64(137)); got != want {
		t.Errorf("got exit code %v, want %v", got, want)
	}
	if got, want := run.Status().Code, codes.Error; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := run.Links(); len(got) != 1 || !got[0].SpanContext.Equal(start.SpanContext()) {
		t.Errorf("got links %v, want one to %v", got, start.SpanContext())
	}
	rt.Finish(time.Unix(10, 0), 0, nil)
	if got, want := len(rt.recorder.Ended()), 2; got != want {
		t.Errorf("got %d spans after a second Finish, want %d", got, want)
	}
}

func TestARunThatTheProcessSentIsNotMadeAgain(t *testing.T) {
	rt := newRelayTest(t)
	run := rt.frame(relay.ModuleRun)
	run.Attrs = map[string]any{relay.ExitCode: 3}
	rt.send(t, rt.frame(relay.ModuleStart), run)
	spans := rt.end()
	if got, want := names(spans), []string{ModuleStart, ModuleRun}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if got, want := attrs(spans[1])[ProcessExitCode], any(int64(3)); got != want {
		t.Errorf("got exit code %v, want %v", got, want)
	}
	if got := spans[1].Links(); len(got) != 1 || !got[0].SpanContext.Equal(spans[0].SpanContext()) {
		t.Errorf("got links %v, want one to %v", got, spans[0].SpanContext())
	}
}

func TestAProcessThatNeverEnteredItsGuestHasNoRun(t *testing.T) {
	rt := newRelayTest(t)
	rt.send(t, rt.frame(relay.ModuleLoad))
	if got, want := names(rt.end()), []string{ModuleLoad}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWithoutATraceThereIsNoRelay(t *testing.T) {
	var r *Relay
	if got := r.Offer(context.Background()); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
	r.Finish(time.Now(), 0, nil)
}

func TestASpanOfAProcessOutlivesTheRequestThatStartedIt(t *testing.T) {
	rt := newRelayTest(t)
	ctx, cancel := context.WithCancel(trace.ContextWithSpan(context.Background(), rt.parent))
	rt.Offer(ctx)
	cancel()
	rt.send(t, rt.frame(relay.ModuleLoad))
	if got, want := names(rt.end()), []string{ModuleLoad}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWhatARecorderWritesTheRelayReads(t *testing.T) {
	rt := newRelayTest(t)
	rec, err := relay.NewRecorder(rt.w, rt.offered)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now().Add(-time.Second)
	rec.Record(relay.ModuleLoad, began, nil, nil)
	rec.Record(relay.ModuleStart, began, nil, map[string]any{relay.ModuleFunction: "_start"})
	rec.Record(relay.ModuleRun, began, errors.New("trap"), map[string]any{relay.ExitCode: 134})
	spans := rt.end()
	if got, want := names(spans), []string{ModuleLoad, ModuleStart, ModuleRun}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for _, span := range spans {
		if !span.StartTime().Equal(time.Unix(0, began.UnixNano())) || span.EndTime().Before(span.StartTime()) {
			t.Errorf("%s: got %v to %v, want from %v", span.Name(), span.StartTime(), span.EndTime(), began)
		}
	}
	if got, want := attrs(spans[1])[relay.ModuleFunction], any("_start"); got != want {
		t.Errorf("got function %v, want %v", got, want)
	}
	if got, want := spans[2].Status(), (sdktrace.Status{Code: codes.Error, Description: "trap"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzRelay(f *testing.F) {
	good, err := json.Marshal(relay.Frame{Name: ModuleStart, Parent: "PARENT", Start: 1, End: 2, Attrs: map[string]any{"n": 1}})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"", "\n", "null\n", "{\n", string(good) + "\n", string(good) + "\n" + string(good) + "\n", strings.Repeat(string(good)+"\n", 2*maxFrames)} {
		f.Add([]byte(s))
	}
	f.Add([]byte(strings.Repeat("x", relay.MaxFrame+1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		rt := newRelayTest(t)
		// The fuzzer cannot know what will be offered.
		quoted, err := json.Marshal(rt.offered)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = rt.w.WriteString(strings.ReplaceAll(string(data), `"PARENT"`, string(quoted)))
		spans := rt.end()
		if got, want := len(spans), maxFrames+1; got > want {
			t.Errorf("got %d spans, want %d at most", got, want)
		}
		for _, span := range spans {
			if !relayed[span.Name()] || !span.Parent().Equal(rt.parent.SpanContext()) {
				t.Errorf("got %s below %v", span.Name(), span.Parent())
			}
			if len(span.Attributes()) > maxAttributes+1 {
				t.Errorf("%s has %d attributes", span.Name(), len(span.Attributes()))
			}
		}
	})
}
