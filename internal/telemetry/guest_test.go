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
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// A relayed process whose guest runs, and makes spans of its own.
type guestTest struct {
	*relayTest
	w *os.File // the process's end of its guest's pipe
}

func newGuestTest(t testing.TB) *guestTest {
	t.Helper()
	rt := newRelayTest(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	rt.Guest(r)
	rt.guest.mu.Lock()
	rt.guest.all = newAllGuests() // other tests have theirs
	rt.guest.mu.Unlock()
	ctx := WithAttributes(context.Background(), ContainerID.String("c"))
	rt.Run(trace.ContextWithSpan(ctx, rt.start))
	return &guestTest{rt, w}
}

func (gt *guestTest) say(t *testing.T, frames ...relay.GuestFrame) {
	t.Helper()
	for _, f := range frames {
		if f.At == 0 {
			f.At = time.Now().UnixNano()
		}
		line, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := gt.w.Write(append(line, '\n')); err != nil {
			t.Fatal(err)
		}
	}
}

func enter(depth int, name string) relay.GuestFrame {
	return relay.GuestFrame{Call: relay.SpanEnter, Depth: depth, Text: name}
}

func exit(depth int) relay.GuestFrame { return relay.GuestFrame{Call: relay.SpanExit, Depth: depth} }

// exits has the run come to an end, and returns the spans by name.
func (gt *guestTest) exits(t *testing.T, run relay.Frame) map[string]sdktrace.ReadOnlySpan {
	t.Helper()
	gt.send(t, gt.frame(ModuleStart), run)
	return gt.ended()
}

func (gt *guestTest) ended() map[string]sdktrace.ReadOnlySpan {
	gt.w.Close()
	spans := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range gt.end() {
		spans[s.Name()] = s
	}
	return spans
}

func TestSpansOfAGuestAreBelowItsRunAndInEachOther(t *testing.T) {
	gt := newGuestTest(t)
	gt.say(t, enter(1, "a"), enter(2, "b"), exit(2), enter(2, "c"), enter(3, "d"), exit(3), exit(2), exit(1), enter(1, "e"), exit(1))
	s := gt.exits(t, gt.frame(ModuleRun))
	for name, parent := range map[string]string{"a": ModuleRun, "b": "a", "c": "a", "d": "c", "e": ModuleRun} {
		if s[name] == nil || s[parent] == nil || s[name].Parent().SpanID() != s[parent].SpanContext().SpanID() || s[name].SpanContext().TraceID() != s[parent].SpanContext().TraceID() {
			t.Fatalf("%s is not below %s: %v", name, parent, slices.Collect(maps.Keys(s)))
		}
		if got := attrs(s[name]); len(got) != 1 || got[ContainerID] != "c" {
			t.Errorf("%s: %v", name, got)
		}
		if got := s[name].InstrumentationScope().Name; got != guestScope {
			t.Errorf("%s: scope %s", name, got)
		}
	}
	if got := s[ModuleRun].Parent(); !got.Equal(gt.start.SpanContext()) {
		t.Errorf("the run is below %v", got)
	}
	if got := attrs(s[ModuleRun]); len(got) != 1 {
		t.Errorf("the run has %v", got)
	}
}

func TestWhatAGuestSaysIsOfTheInnermostSpan(t *testing.T) {
	gt := newGuestTest(t)
	gt.say(t,
		relay.GuestFrame{Call: relay.SpanTags, Text: "of:the run"},
		relay.GuestFrame{Call: relay.Log, Level: 1, Text: "bad"},
		enter(1, "a"),
		relay.GuestFrame{Call: relay.SpanTags, Depth: 1, Text: "k:v, k2:a:b,flag"},
		enter(2, "b"),
		relay.GuestFrame{Call: relay.Log, Depth: 2, Level: 5, Text: "half way"},
		relay.GuestFrame{Call: relay.Log, Depth: 2, Level: 6, Text: ""},
		exit(2), exit(1),
	)
	run := gt.frame(ModuleRun)
	run.Attrs = map[string]any{relay.ExitCode: 0}
	s := gt.exits(t, run)
	if got, want := attrs(s["a"]), (map[attribute.Key]any{ContainerID: "c", "k": "v", "k2": "a:b", "flag": true}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := attrs(s[ModuleRun]), (map[attribute.Key]any{ContainerID: "c", "of": "the run", ProcessExitCode: int64(0)}); !maps.Equal(got, want) {
		t.Errorf("the run: got %v, want %v", got, want)
	}
	for name, want := range map[string][]string{ModuleRun: {"log error bad"}, "a": nil, "b": {"log trace half way", "log unknown "}} {
		var got []string
		for _, e := range s[name].Events() {
			m := map[attribute.Key]string{}
			for _, kv := range e.Attributes {
				m[kv.Key] = kv.Value.AsString()
			}
			got = append(got, e.Name+" "+m[GuestLogLevel]+" "+m[GuestLogMessage])
			if e.Time.Before(gt.began.Round(0)) || e.Time.After(time.Now()) {
				t.Errorf("%s: at %v", name, e.Time)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestKeysThatAreTheShimsAreNoGuests(t *testing.T) {
	gt := newGuestTest(t)
	gt.say(t, enter(1, "a"))
	tags := []string{"container.id:x", "k8s.pod.name:x", "Process.pid:1", "wasm.guest.dropped:1", "service.name:x", "containerd.namespace:x", ":x", "", "  : "}
	for _, tag := range tags {
		gt.say(t, relay.GuestFrame{Call: relay.SpanTags, Depth: 1, Text: tag})
	}
	gt.say(t, exit(1))
	s := gt.exits(t, gt.frame(ModuleRun))
	if got, want := attrs(s["a"]), (map[attribute.Key]any{ContainerID: "c"}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := attrs(s[ModuleRun])[GuestDropped], any(int64(len(tags))); got != want {
		t.Errorf("dropped %v, want %v", got, want)
	}
}

func TestAGuestsTimesAreThoseOfItsRun(t *testing.T) {
	gt := newGuestTest(t)
	at := func(f relay.GuestFrame, at int64) relay.GuestFrame { f.At = at; return f }
	gt.say(t, at(enter(1, "a"), -1), at(enter(2, "b"), 1<<62), at(relay.GuestFrame{Call: relay.Log, Depth: 2}, 1), at(exit(2), 1), at(exit(1), 1<<63-1))
	s := gt.exits(t, gt.frame(ModuleRun))
	gt.checkTimes(t, slices.Collect(maps.Values(s)))
	if a, b := s["a"], s["b"]; b.StartTime().Before(a.StartTime()) || b.EndTime().After(a.EndTime()) || b.Events()[0].Time.Before(b.StartTime()) {
		t.Errorf("a: %v to %v, b: %v to %v", a.StartTime(), a.EndTime(), b.StartTime(), b.EndTime())
	}
}

func TestSpansThatAreOpenEndWithTheRun(t *testing.T) {
	for name, tt := range map[string]struct {
		err    string
		status codes.Code
	}{"an exit": {"", codes.Unset}, "a trap": {"unreachable", codes.Error}} {
		t.Run(name, func(t *testing.T) {
			gt := newGuestTest(t)
			gt.say(t, enter(1, "a"), enter(2, "b"), exit(2), enter(2, "c"))
			run := gt.frame(ModuleRun)
			run.Error = tt.err
			s := gt.exits(t, run)
			for _, name := range []string{"a", "c"} {
				if s[name] == nil || s[name].Status().Code != tt.status || s[name].Status().Description != tt.err || attrs(s[name])[GuestUnfinished] != true {
					t.Errorf("%s: got %+v", name, s[name])
				}
			}
			if _, ok := attrs(s["b"])[GuestUnfinished]; ok || s["b"].Status().Code != codes.Unset {
				t.Errorf("b: got %+v", s["b"])
			}
		})
	}
	t.Run("a kill", func(t *testing.T) {
		gt := newGuestTest(t)
		gt.say(t, enter(1, "a"), relay.GuestFrame{Call: relay.Log, Depth: 1, Text: "x", Dropped: 7})
		gt.send(t, gt.frame(ModuleStart))
		s := gt.ended()
		run := s[ModuleRun]
		if run == nil || attrs(run)[GuestDropped] != int64(7) || s["a"].Parent().SpanID() != run.SpanContext().SpanID() {
			t.Fatalf("got %+v", s)
		}
		if got := s["a"].Status().Description; got != "ended by signal 9" || !s["a"].EndTime().Equal(run.EndTime()) {
			t.Errorf("a: %q, until %v; the run until %v", got, s["a"].EndTime(), run.EndTime())
		}
	})
}

// Where the end of a span was lost, the next word of the guest is the end of it.
func TestAnEndThatWasLostIsMadeUpFor(t *testing.T) {
	gt := newGuestTest(t)
	gt.say(t, enter(1, "a"), enter(2, "b"), enter(1, "c"), enter(5, "d"), relay.GuestFrame{Call: relay.Log, Depth: 1, Text: "of c"}, exit(3), exit(1), exit(1), enter(1, "e"), exit(1))
	s := gt.exits(t, gt.frame(ModuleRun))
	for name, parent := range map[string]string{"a": ModuleRun, "b": "a", "c": ModuleRun, "d": "c", "e": ModuleRun} {
		if s[name] == nil || s[name].Parent().SpanID() != s[parent].SpanContext().SpanID() || attrs(s[name])[GuestUnfinished] != nil {
			t.Errorf("%s: got %+v", name, s[name])
		}
	}
	if len(s["c"].Events()) != 1 {
		t.Errorf("c: got %v", s["c"].Events())
	}
}

func TestSpansOfAGuestAreBoundedInNumberAndTheRestCounted(t *testing.T) {
	gt := newGuestTest(t)
	const n = 5000
	for range n {
		gt.say(t, enter(1, "a"), exit(1))
	}
	gt.send(t, gt.frame(ModuleStart), gt.frame(ModuleRun))
	gt.w.Close()
	spans := gt.end()
	count := 0
	var run sdktrace.ReadOnlySpan
	for _, s := range spans {
		switch s.Name() {
		case "a":
			count++
		case ModuleRun:
			run = s
		}
	}
	dropped, _ := attrs(run)[GuestDropped].(int64)
	if most := 2*relay.GuestBurst + 10*relay.GuestRate; count == 0 || count > most || int64(count)+dropped != n {
		t.Errorf("got %d spans, %d dropped, of %d; %d are the most", count, dropped, n, most)
	}
}

func TestWhatASpanOfAGuestHoldsIsBounded(t *testing.T) {
	gt := newGuestTest(t)
	long := strings.Repeat("é", relay.MaxText)
	gt.say(t, enter(1, long))
	for i := range 30 {
		gt.say(t, relay.GuestFrame{Call: relay.Log, Depth: 1, Text: long[:1000]}, relay.GuestFrame{Call: relay.Log, Text: long[:1000]})
		gt.say(t, enter(1, "again"))
		for j := range 8 {
			gt.say(t, relay.GuestFrame{Call: relay.SpanTags, Depth: 1, Text: fmt.Sprint(i, j, ":", long[:900])})
		}
	}
	gt.send(t, gt.frame(ModuleStart), gt.frame(ModuleRun))
	gt.w.Close()
	for _, s := range gt.end() {
		size := len(s.Name())
		texts := []string{s.Name()}
		for _, kv := range s.Attributes() {
			texts = append(texts, string(kv.Key), kv.Value.String())
		}
		for _, e := range s.Events() {
			for _, kv := range e.Attributes {
				texts = append(texts, kv.Value.String())
			}
		}
		for _, text := range texts {
			size += len(text)
			if !utf8.ValidString(text) {
				t.Errorf("%q", text)
			}
		}
		if size > 2*maxSpanBytes || len(s.Name()) > maxSpanName+3 {
			t.Errorf("%.10s holds %d bytes", s.Name(), size)
		}
	}
}

func TestWhatIsNoFrameOfAGuestIsDropped(t *testing.T) {
	for _, line := range []string{
		"", "null", "[]", "{", "\x00\xff", `{"call":1}`, `{"call":"nonsense"}`, `{"call":"enter"}`, `{"call":"enter","depth":-1}`, `{"call":"enter","depth":65}`,
		`{"call":"enter","depth":1e99}`, `{"call":"exit","depth":1}`, `{"call":"exit"}`, `{"call":"tags","depth":3,"text":"a:b"}`, `{"call":"metric","level":2,"text":"a:1|c"}`,
		`{"call":"log","level":-1}`, strings.Repeat("x", 3*relay.MaxFrame), `{"call":"enter","depth":1,"text":"` + strings.Repeat("x", relay.MaxFrame) + `"}`,
	} {
		t.Run(fmt.Sprintf("%.40s", line), func(t *testing.T) {
			gt := newGuestTest(t)
			if _, err := gt.w.WriteString(line + "\n"); err != nil {
				t.Fatal(err)
			}
			gt.say(t, enter(1, "a"), exit(1))
			s := gt.exits(t, gt.frame(ModuleRun))
			if len(s) != 3 || s["a"] == nil || len(s["a"].Attributes()) != 1 {
				t.Errorf("got %v", slices.Collect(maps.Keys(s)))
			}
		})
	}
}

func TestBeforeItRunsAGuestMakesNoSpan(t *testing.T) {
	rt := newRelayTest(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	rt.Guest(r)
	gt := &guestTest{rt, w}
	gt.say(t, enter(1, "a"), exit(1))
	if got := gt.ended(); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestAGuestWhoseRunIsNotSampledMakesNoSpan(t *testing.T) {
	gt := newGuestTest(t)
	unsampled := trace.SpanContextFromContext(trace.ContextWithSpan(context.Background(), gt.start)).WithTraceFlags(0)
	gt.guest.tracer = nil
	env := gt.Run(trace.ContextWithSpanContext(context.Background(), unsampled))
	if len(env) != 1 || !strings.HasSuffix(env[0], "-00") || !strings.HasPrefix(env[0], "TRACEPARENT=00-"+unsampled.TraceID().String()) {
		t.Errorf("got %q", env)
	}
	gt.say(t, enter(1, "a"), exit(1))
	if got := gt.ended(); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// A process may go on writing for ever, or leave its pipe to one that does.
func TestAFloodOfAGuestIsReadAtABoundedRateAndEndsWithItsProcess(t *testing.T) {
	gt := newGuestTest(t)
	written := make(chan int, 1)
	var flood sync.WaitGroup
	flood.Go(func() {
		n := 0
		for {
			m, err := gt.w.WriteString(strings.Repeat("x", 1000) + "\n")
			n += m
			if errors.Is(err, unix.EPIPE) {
				written <- n
				return
			}
		}
	})
	defer flood.Wait()
	time.Sleep(100 * time.Millisecond)
	gt.send(t, gt.frame(ModuleStart))
	began := time.Now()
	gt.Finish(gt.began.Add(time.Minute), 137, nil) // and w is open
	took := time.Since(gt.began) + time.Since(began)
	if n, most := <-written, guestBytesBurst+guestLeft+int(took.Seconds()*guestBytes)+(200<<10); n > most {
		t.Errorf("read %d bytes, want %d at most", n, most)
	}
	if got := names(gt.recorder.Ended()); !slices.Contains(got, ModuleRun) {
		t.Errorf("got %v", got)
	}
}

func TestTheEnvironmentOfAGuestNamesItsRun(t *testing.T) {
	rt := newRelayTest(t)
	member, err := baggage.NewMember("k", "v")
	if err != nil {
		t.Fatal(err)
	}
	bag, err := baggage.New(member)
	if err != nil {
		t.Fatal(err)
	}
	state, err := trace.ParseTraceState("a=b")
	if err != nil {
		t.Fatal(err)
	}
	sc := rt.start.SpanContext().WithTraceState(state)
	ctx := baggage.ContextWithBaggage(trace.ContextWithSpanContext(context.Background(), sc), bag)
	got := rt.Run(ctx)
	rt.running = trace.ContextWithSpan(context.Background(), rt.start)
	rt.send(t, rt.frame(ModuleStart))
	spans := rt.end()
	run := spans[len(spans)-1].SpanContext()
	want := []string{"BAGGAGE=k=v", "TRACEPARENT=00-" + run.TraceID().String() + "-" + run.SpanID().String() + "-01", "TRACESTATE=a=b"}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var none *Relay
	if env := none.Run(ctx); env != nil {
		t.Errorf("without a trace: got %q", env)
	}
}

func TestBaggageThatThereIsNoRoomForIsNotTheGuests(t *testing.T) {
	var members []baggage.Member
	for i := range 3 {
		m, err := baggage.NewMember(fmt.Sprint("k", i), strings.Repeat("v", 2500))
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, m)
	}
	bag, err := baggage.New(members...)
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for i := range 20 {
		pairs = append(pairs, fmt.Sprintf("k%d=%s", i, strings.Repeat("v", 200)))
	}
	state, err := trace.ParseTraceState(strings.Join(pairs, ","))
	if err != nil {
		t.Fatal(err)
	}
	ctx := baggage.ContextWithBaggage(trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceState: state,
	})), bag)
	size, traced := 0, false
	for _, kv := range environ(ctx) {
		size += len(kv)
		traced = traced || strings.HasPrefix(kv, "TRACEPARENT=")
	}
	if size > maxEnviron || !traced {
		t.Errorf("%d bytes, TRACEPARENT: %t", size, traced)
	}
}

// FuzzGuest has a process say anything of its guest.
func FuzzGuest(f *testing.F) {
	for _, s := range []string{
		"", "\n", "null\n", `{"call":"enter","depth":1,"text":"a"}` + "\n" + `{"call":"exit","depth":1}` + "\n",
		`{"call":"enter","depth":64,"at":-1}` + "\n" + `{"call":"enter","depth":1,"at":9223372036854775807,"dropped":-1}` + "\n",
		`{"call":"tags","text":"a:b,container.id:c,:,d"}` + "\n" + `{"call":"log","level":4294967295,"text":"\ud800"}` + "\n",
		`{"call":"metric","level":1,"text":"a:1|c|@0.5|#b:c"}` + "\n" + `{"call":"metric","level":1,"text":"a:-1e308|g"}` + "\n",
		strings.Repeat(`{"call":"enter","depth":1,"text":"a"}`+"\n", 100), strings.Repeat("x", relay.MaxFrame+10) + "\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		gt := newGuestTest(t)
		_ = gt.w.SetWriteDeadline(time.Now().Add(10 * time.Second))
		if _, err := gt.w.Write(data); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the relay does not read on, and does not hang up")
		}
		gt.send(t, gt.frame(ModuleStart))
		gt.w.Close()
		spans := gt.end()
		known := map[trace.SpanID]bool{gt.start.SpanContext().SpanID(): true}
		for _, s := range spans {
			known[s.SpanContext().SpanID()] = true
		}
		for _, s := range spans {
			if s.SpanContext().TraceID() != gt.start.SpanContext().TraceID() || !known[s.Parent().SpanID()] {
				t.Errorf("%q is below %v", s.Name(), s.Parent())
			}
			if !utf8.ValidString(s.Name()) || s.InstrumentationScope().Name == guestScope && attrs(s)[ContainerID] != "c" {
				t.Errorf("got %q, %v", s.Name(), s.Attributes())
			}
			for _, kv := range s.Attributes() {
				if !utf8.ValidString(string(kv.Key)) || !utf8.ValidString(kv.Value.String()) {
					t.Errorf("got %v", kv)
				}
			}
		}
		gt.checkTimes(t, spans)
	})
}
