package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// A relayed process, as the shim sees it.
type relayTest struct {
	*Relay
	w        *os.File // the process's end of the pipe
	recorder *tracetest.SpanRecorder
	create   trace.Span // the process was started in it
	start    trace.Span // the guest was let run in it
	began    time.Time
}

func newRelayTest(t testing.TB) *relayTest {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	rt := &relayTest{w: w, began: time.Now()}
	var provider *sdktrace.TracerProvider
	rt.recorder, provider = newProvider()
	created, create := StartOperation(context.Background(), provider, TaskCreate)
	started, start := StartOperation(context.Background(), provider, TaskStart)
	rt.create, rt.start = create, start
	rt.Relay = NewRelay(created, r)
	rt.Run(started)
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

// frame is one in order: of a span that has just begun and ended.
func (rt *relayTest) frame(name string) relay.Frame {
	now := time.Now().UnixNano()
	return relay.Frame{Name: name, Start: now, End: now}
}

// end has the process exit with status 137 in a minute, and returns the spans made.
func (rt *relayTest) end() []sdktrace.ReadOnlySpan {
	rt.w.Close()
	rt.Finish(rt.began.Add(time.Minute), 137, errors.New("ended by signal 9"))
	return rt.recorder.Ended()
}

func names(spans []sdktrace.ReadOnlySpan) (names []string) {
	for _, s := range spans {
		names = append(names, s.Name())
	}
	return names
}

func TestAFrameBecomesASpan(t *testing.T) {
	rt := newRelayTest(t)
	f := rt.frame(relay.ModuleTranslate)
	f.Attrs = map[string]any{relay.ModuleSize: 1 << 60}
	f.Error, f.ErrorType = "invalid module", "*errors.errorString"
	rt.send(t, f, rt.frame(relay.InstancePrepare))
	spans := rt.end()
	if got, want := names(spans), []string{ModuleTranslate, InstancePrepare}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	span := spans[0]
	if !span.StartTime().Equal(time.Unix(0, f.Start)) || !span.EndTime().Equal(time.Unix(0, f.End)) {
		t.Errorf("got %v to %v", span.StartTime(), span.EndTime())
	}
	want := map[attribute.Key]any{ModuleSize: int64(1 << 60), ErrorType: "*errors.errorString"}
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

func TestWhatASpanIsBelowIsNotForTheProcessToSay(t *testing.T) {
	rt := newRelayTest(t)
	for name := range relayed {
		line, err := json.Marshal(map[string]any{"name": name, "parent": traceparent, "traceID": traceparent, "start": 1, "end": 2})
		if err != nil {
			t.Fatal(err)
		}
		rt.write(t, string(line)+"\n")
	}
	want := map[string]trace.Span{
		InstancePrepare: rt.create, ModuleTranslate: rt.create, ModuleLoad: rt.create,
		ModuleInstantiate: rt.start, ModuleStart: rt.start, ModuleRun: rt.start,
	}
	spans := rt.end()
	if got := len(spans); got != len(want) {
		t.Errorf("got %v, want one of each kind", names(spans))
	}
	for _, span := range spans {
		if got, want := span.Parent(), want[span.Name()].SpanContext(); !got.Equal(want) {
			t.Errorf("%s: got parent %v, want %v", span.Name(), got, want)
		}
	}
}

func TestBeforeTheGuestMayRunThereIsNoSpanOfIt(t *testing.T) {
	rt := newRelayTest(t)
	rt.mu.Lock()
	rt.running = nil
	rt.mu.Unlock()
	rt.send(t, rt.frame(relay.ModuleInstantiate), rt.frame(relay.ModuleStart), rt.frame(relay.ModuleRun), rt.frame(relay.ModuleLoad))
	if got, want := names(rt.end()), []string{ModuleLoad}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestASpanIsOfTheTimeThatTheProcessHasHad(t *testing.T) {
	const hour = int64(time.Hour)
	for name, change := range map[string]func(f *relay.Frame){
		"an end before its start":       func(f *relay.Frame) { f.End = f.Start - 1 },
		"no times":                      func(f *relay.Frame) { f.Start, f.End = 0, 0 },
		"before 1970":                   func(f *relay.Frame) { f.Start, f.End = math.MinInt64, -1 },
		"before the process was there":  func(f *relay.Frame) { f.Start, f.End = f.Start-2*hour, f.End-hour },
		"in the future":                 func(f *relay.Frame) { f.Start, f.End = f.Start+hour, f.End+2*hour },
		"at the end of all time":        func(f *relay.Frame) { f.Start, f.End = math.MaxInt64, math.MaxInt64 },
		"from the beginning to the end": func(f *relay.Frame) { f.Start, f.End = math.MinInt64, math.MaxInt64 },
	} {
		t.Run(name, func(t *testing.T) {
			rt := newRelayTest(t)
			f := rt.frame(relay.ModuleLoad)
			change(&f)
			rt.send(t, f)
			rt.checkTimes(t, rt.end())
		})
	}
}

func (rt *relayTest) checkTimes(t *testing.T, spans []sdktrace.ReadOnlySpan) {
	t.Helper()
	for _, span := range spans {
		if start, end := span.StartTime(), span.EndTime(); start.Before(rt.began.Round(0)) || end.Before(start) || end.After(rt.began.Add(time.Minute)) {
			t.Errorf("%s: got %v to %v", span.Name(), start, end)
		}
	}
}

func TestASpanSaysOnlyWhatOneOfItsKindMay(t *testing.T) {
	rt := newRelayTest(t)
	anything := map[string]any{
		relay.ModuleSize: 1, relay.ModuleFunction: "f", relay.ExitCode: 3,
		"k8s.pod.name": "another", "none": nil, "list": []int{1}, "": 1,
	}
	var frames []relay.Frame
	for _, name := range []string{InstancePrepare, ModuleLoad, ModuleInstantiate, ModuleTranslate, ModuleStart, ModuleRun} {
		f := rt.frame(name)
		f.Attrs = anything
		frames = append(frames, f)
	}
	rt.send(t, frames...)
	want := map[string]map[attribute.Key]any{
		ModuleTranslate: {ModuleSize: int64(1)}, ModuleStart: {relay.ModuleFunction: "f"}, ModuleRun: {ProcessExitCode: int64(3)},
	}
	for _, span := range rt.end() {
		if got := attrs(span); !maps.Equal(got, want[span.Name()]) {
			t.Errorf("%s: got %v, want %v", span.Name(), got, want[span.Name()])
		}
	}
	for name, value := range map[string]any{
		"a text for a number": "3", "a fraction": 1.5, "too large a number": json.Number("1e99"), "a truth": true, "a list": []int{1}, "nothing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			rt := newRelayTest(t)
			run, start := rt.frame(ModuleRun), rt.frame(ModuleStart)
			run.Attrs, start.Attrs = map[string]any{relay.ExitCode: value}, map[string]any{relay.ModuleFunction: []any{value}}
			rt.send(t, run, start)
			for _, span := range rt.end() {
				if len(span.Attributes()) > 0 {
					t.Errorf("%s: got %v", span.Name(), span.Attributes())
				}
			}
		})
	}
}

func TestTextsOfASpanAreBoundedAndUTF8(t *testing.T) {
	for name, text := range map[string]string{
		"long":               strings.Repeat("x", 3000),
		"cut in a character": strings.Repeat("x", relay.MaxText-1) + strings.Repeat("é", 1000),
		"no text":            "\xff\xfe\x80",
		"half a surrogate":   `\ud800`,
	} {
		t.Run(name, func(t *testing.T) {
			rt := newRelayTest(t)
			rt.write(t, `{"name":"module.start","error":"`+text+`"}`+"\n")
			rt.write(t, `{"name":"module.load","errorType":"`+text+`","error":"x"}`+"\n")
			rt.write(t, `{"name":"module.run","attrs":{"wasm.module.function":"`+text+`"}}`+"\n")
			spans := rt.end()
			if len(spans) != 3 {
				t.Fatalf("got %v", names(spans))
			}
			checkTexts(t, spans)
		})
	}
}

func checkTexts(t *testing.T, spans []sdktrace.ReadOnlySpan) {
	t.Helper()
	for _, span := range spans {
		texts := []string{span.Status().Description}
		for _, v := range attrs(span) {
			if s, ok := v.(string); ok {
				texts = append(texts, s)
			}
		}
		for _, s := range texts {
			if !utf8.ValidString(s) || len(s) > relay.MaxText+len("\ufffd") {
				t.Errorf("%s says %q", span.Name(), s)
			}
		}
	}
}

func TestASpanThatNoProcessSendsIsDropped(t *testing.T) {
	for _, name := range []string{"", "module.nonsense", TaskStart, ShimStart, "module.load\x00"} {
		t.Run(name, func(t *testing.T) {
			rt := newRelayTest(t)
			rt.send(t, rt.frame(name), rt.frame(ModuleInstantiate))
			if got, want := names(rt.end()), []string{ModuleInstantiate}; !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestALineThatIsNoFrameIsDropped(t *testing.T) {
	for _, line := range []string{
		"", "hello", "{", "null", "[]", "1", `{"name":1}`, `{"start":1.5}`, `{"start":1e99}`, "\x00\xff", `{"attrs":"x"}`, `{"name":"module.run"`,
		strings.Repeat("[", relay.MaxFrame-1), strings.Repeat(`{"attrs":`, 400),
	} {
		t.Run(fmt.Sprintf("%.20s", line), func(t *testing.T) {
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

// A frame after one that is too long, or was torn, is read as what it is.
func TestTheLongestFrameIsReadAndOfALongerOneNothing(t *testing.T) {
	for _, tt := range []struct {
		length int // with its end
		want   []string
	}{
		{relay.MaxFrame, []string{ModuleLoad, ModuleInstantiate}},
		{relay.MaxFrame + 1, []string{ModuleInstantiate}},
		{2 * relay.MaxFrame, []string{ModuleInstantiate}},
		{2*relay.MaxFrame + 1, []string{ModuleInstantiate}},
		{10 * relay.MaxFrame, []string{ModuleInstantiate}},
	} {
		t.Run(fmt.Sprint(tt.length), func(t *testing.T) {
			rt := newRelayTest(t)
			line, err := json.Marshal(rt.frame(relay.ModuleLoad))
			if err != nil {
				t.Fatal(err)
			}
			rt.write(t, string(line)+strings.Repeat(" ", tt.length-len(line)-1)+"\n")
			rt.send(t, rt.frame(relay.ModuleInstantiate))
			if got := names(rt.end()); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAProcessHasOneSpanOfEachKind(t *testing.T) {
	rt := newRelayTest(t)
	for range 10 {
		for name := range relayed {
			rt.send(t, rt.frame(name))
		}
	}
	got := names(rt.end())
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(relayed)); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// That it comes to an end is half of the test.
func TestAFloodIsReadUpToABound(t *testing.T) {
	rt := newRelayTest(t)
	rt.send(t, rt.frame(relay.ModuleLoad))
	var written int
	for line := []byte(strings.Repeat("x", relay.MaxFrame-1) + "\n"); ; {
		n, err := rt.w.Write(line)
		written += n
		if errors.Is(err, unix.EPIPE) {
			break // nobody reads any more
		}
		if err != nil {
			t.Fatal(err)
		}
		if written > 10*maxRelayed {
			t.Fatalf("read %d bytes, want %d at most", written, maxRelayed)
		}
	}
	if got, want := names(rt.end()), []string{ModuleLoad}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A process that was broken into may have given its pipe to one that lives on, and
// goes on writing.
func TestTheEndOfAProcessIsTheEndOfItsRelayWhoeverHasThePipe(t *testing.T) {
	for _, writing := range []bool{false, true} {
		t.Run(fmt.Sprint("writing: ", writing), func(t *testing.T) {
			rt := newRelayTest(t)
			rt.send(t, rt.frame(relay.ModuleLoad), rt.frame(relay.ModuleStart))
			if writing {
				var flood sync.WaitGroup
				flood.Go(func() {
					for {
						if _, err := rt.w.WriteString("\n"); err != nil {
							return
						}
					}
				})
				defer flood.Wait()
			}
			rt.Finish(rt.began.Add(time.Minute), 137, nil) // and w is open
			if got, want := names(rt.recorder.Ended()), []string{ModuleLoad, ModuleStart, ModuleRun}; !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if _, err := rt.w.WriteString("x"); !errors.Is(err, unix.EPIPE) {
				t.Errorf("got %v, want %v", err, unix.EPIPE)
			}
		})
	}
}

// What a process wrote before its end is read, however late the shim gets to it.
func TestAllThatAProcessHasWrittenIsRead(t *testing.T) {
	for range 100 {
		rt := newRelayTest(t)
		for name := range relayed {
			rt.send(t, rt.frame(name))
		}
		rt.Finish(rt.began.Add(time.Minute), 0, nil)
		if got := names(rt.recorder.Ended()); len(got) != len(relayed) {
			t.Fatalf("got %v, want one of each kind", got)
		}
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
	if got, want := run.Parent(), rt.start.SpanContext(); !got.Equal(want) {
		t.Errorf("got parent %v, want %v", got, want)
	}
	if !run.StartTime().Equal(start.EndTime()) || !run.EndTime().Equal(rt.began.Add(time.Minute)) {
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
	rt.Finish(time.Now(), 0, nil)
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

func TestWithoutATraceThereIsNoRelay(_ *testing.T) {
	var r *Relay
	r.Run(context.Background())
	r.Finish(time.Now(), 0, nil)
}

func TestASpanOfAProcessOutlivesTheRequestThatStartedIt(t *testing.T) {
	rt := newRelayTest(t)
	ctx, cancel := context.WithCancel(trace.ContextWithSpan(context.Background(), rt.start))
	rt.Run(ctx)
	cancel()
	rt.send(t, rt.frame(relay.ModuleInstantiate))
	if got, want := names(rt.end()), []string{ModuleInstantiate}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestARunThatCameBeforeItsStartIsNotMadeAgain(t *testing.T) {
	rt := newRelayTest(t)
	rt.send(t, rt.frame(relay.ModuleRun), rt.frame(relay.ModuleStart))
	if got, want := names(rt.end()), []string{ModuleRun, ModuleStart}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWhatARecorderWritesTheRelayReads(t *testing.T) {
	rt := newRelayTest(t)
	rec, err := relay.NewRecorder(rt.w)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
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

// FuzzRelay has a process write anything, and then live on with the pipe.
func FuzzRelay(f *testing.F) {
	good := `{"name":"module.start","start":1,"end":2,"attrs":{"wasm.module.function":"_start"}}` + "\n"
	for _, s := range []string{
		"", "\n", "null\n", "{\n", good, good + good, strings.Repeat(good, 200), strings.ReplaceAll(good, "start", "run"),
		`{"name":"module.run","start":-9223372036854775808,"end":9223372036854775807,"attrs":{"process.exit.code":256}}` + "\n",
		`{"name":"module.translate","attrs":{"wasm.module.size":1e99},"error":"\ud800","errorType":"x"}` + "\n",
		`{"name":"module.load","name":"module.run","error":"` + "\xff" + `"}` + "\n" + good,
		strings.Repeat("x", relay.MaxFrame) + "\n" + good, strings.Repeat("[", relay.MaxFrame-1) + "\n" + good,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rt := newRelayTest(t)
		_ = rt.w.SetWriteDeadline(time.Now().Add(10 * time.Second))
		if _, err := rt.w.Write(data); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the relay does not read on, and does not hang up")
		}
		rt.Finish(rt.began.Add(time.Minute), 137, nil)
		spans := rt.recorder.Ended()
		if got, want := len(spans), len(relayed); got > want {
			t.Errorf("got %d spans, want %d at most", got, want)
		}
		for _, span := range spans {
			kind, ok := relayed[span.Name()]
			parent := rt.create
			if kind.running {
				parent = rt.start
			}
			if !ok || !span.Parent().Equal(parent.SpanContext()) || span.SpanContext().TraceID() != parent.SpanContext().TraceID() {
				t.Errorf("got %s below %v", span.Name(), span.Parent())
			}
			for k := range attrs(span) {
				if _, ok := kind.attrs[k]; !ok && k != ErrorType && k != ProcessExitCode {
					t.Errorf("%s has %s", span.Name(), k)
				}
			}
		}
		rt.checkTimes(t, spans)
		checkTexts(t, spans)
	})
}
