package telemetry

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// bootInto sets the environment of a `start` process, and then what that gives
// the shim.
func bootInto(t *testing.T, began time.Time, env map[string]string) {
	t.Helper()
	for _, name := range []string{TraceContextEnv, "TRACEPARENT", "TRACESTATE", "BAGGAGE", bootEnv} {
		t.Setenv(name, env[name])
	}
	for _, kv := range Boot(began) {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
}

// started is the span of a shim that calls StartShim, which has its stages below it, if
// it is known when they were.
func started(t *testing.T, ctx context.Context) (context.Context, sdktrace.ReadOnlySpan) {
	t.Helper()
	recorder, provider := newProvider()
	ctx = StartShim(ctx, provider, time.Now())
	ended := recorder.Ended()
	checkStart(t, ended)
	return ctx, ended[len(ended)-1]
}

func checkStart(t *testing.T, ended []sdktrace.ReadOnlySpan) {
	t.Helper()
	got := names(ended)
	if !slices.Equal(got, []string{ShimStart}) && !slices.Equal(got, []string{ShimListen, ShimExec, ShimStart}) {
		t.Fatalf("got %v, want %s, and its stages or none", got, ShimStart)
	}
	start := ended[len(ended)-1]
	for _, stage := range ended[:len(ended)-1] {
		if stage.Parent().SpanID() != start.SpanContext().SpanID() || stage.SpanContext().SpanID() == start.SpanContext().SpanID() {
			t.Errorf("%s is %v below %v, want a span below %v", stage.Name(), stage.SpanContext(), stage.Parent(), start.SpanContext())
		}
		if stage.StartTime().Before(start.StartTime()) || stage.EndTime().Before(stage.StartTime()) || stage.EndTime().After(start.EndTime()) {
			t.Errorf("%s is from %v to %v, not within %v and %v", stage.Name(), stage.StartTime(), stage.EndTime(), start.StartTime(), start.EndTime())
		}
	}
	if len(ended) == 3 && !ended[0].EndTime().Equal(ended[1].StartTime()) {
		t.Errorf("%s ends at %v, and %s begins at %v", ended[0].Name(), ended[0].EndTime(), ended[1].Name(), ended[1].StartTime())
	}
}

func TestTheStagesOfAStartAreThoseThatItHadTimesOf(t *testing.T) {
	const ms = int64(time.Millisecond)
	at := time.Now().UnixNano() - 1000*ms
	for _, tt := range []struct {
		name        string
		began, exec int64 // ms after at
		want        int
	}{
		{"as it was", 0, 3, 3},
		{"at once", 0, 0, 3},
		{"the clock was set back meanwhile", 4, 3, 1},
		{"executed after it served", 0, 500, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(TraceContextEnv, traceparent)
			t.Setenv(bootEnv, fmt.Sprintf(`{"began":%d,"exec":%d}`, at+tt.began*ms, at+tt.exec*ms))
			recorder, provider := newProvider()
			StartShim(context.Background(), provider, time.Unix(0, at+10*ms))
			checkStart(t, recorder.Ended())
			if got := names(recorder.Ended()); len(got) != tt.want {
				t.Errorf("got %v, want %d", got, tt.want)
			}
		})
	}
}

func TestTheStartOfTheShimHasTheIdentityThatWasGivenAway(t *testing.T) {
	began := time.Unix(1700000000, 123456789)
	for _, tt := range []struct {
		name   string
		env    map[string]string
		parent string // span id
		state  string
	}{
		{"in a trace of its own", nil, "", ""},
		{"below TRACECONTEXT", map[string]string{TraceContextEnv: `{"traceparent":"` + traceparent + `","tracestate":"a=b"}`}, spanID, "a=b"},
		{"below a bare TRACECONTEXT", map[string]string{TraceContextEnv: traceparent}, spanID, ""},
		{"below TRACEPARENT", map[string]string{"TRACEPARENT": traceparent, "TRACESTATE": "a=b", "BAGGAGE": "k=v"}, spanID, "a=b"},
		{"TRACECONTEXT goes first", map[string]string{TraceContextEnv: traceparent, "TRACEPARENT": strings.Replace(traceparent, spanID, "1111111111111111", 1)}, spanID, ""},
		{"a malformed TRACECONTEXT is none", map[string]string{TraceContextEnv: "hello"}, "", ""},
		{"a malformed TRACEPARENT is none", map[string]string{"TRACEPARENT": "00-0-0-00"}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bootInto(t, began, tt.env)
			own := trace.SpanContextFromContext(Extract(context.Background(), os.Getenv(TraceContextEnv)))
			if !own.IsValid() || !own.IsSampled() || own.TraceState().String() != tt.state {
				t.Fatalf("got %v in %s, want a span", own, TraceContextEnv)
			}
			ctx, span := started(t, context.Background())
			if got := span.SpanContext(); got.TraceID() != own.TraceID() || got.SpanID() != own.SpanID() {
				t.Errorf("got %v, want %v", got, own)
			}
			if !span.StartTime().Equal(began) {
				t.Errorf("got %v, want %v", span.StartTime(), began)
			}
			if got, want := attrs(span)[ProcessPID], any(int64(os.Getpid())); got != want {
				t.Errorf("got pid %v, want %v", got, want)
			}
			if got := span.Parent(); got.IsValid() != (tt.parent != "") || tt.parent != "" && (got.SpanID().String() != tt.parent || got.TraceID().String() != traceID) {
				t.Errorf("got parent %v, want %q", got, tt.parent)
			}
			if got := trace.SpanContextFromContext(ctx); got.SpanID() != own.SpanID() {
				t.Errorf("the first container is below %v, want %v", got, own)
			}
		})
	}
}

func TestAnUnsampledParentKeepsTheStartOfTheShimUnsampled(t *testing.T) {
	bootInto(t, time.Now(), map[string]string{TraceContextEnv: strings.TrimSuffix(traceparent, "01") + "00"})
	recorder, provider := newProvider()
	ctx := StartShim(context.Background(), provider, time.Now())
	if got := recorder.Ended(); len(got) > 0 {
		t.Errorf("got %v, want no span", got)
	}
	if got := trace.SpanContextFromContext(ctx); got.TraceID().String() != traceID || got.IsSampled() {
		t.Errorf("got %v, want the trace %s, not sampled", got, traceID)
	}
}

func TestTheStartOfTheShimJoinsTheCallersTrace(t *testing.T) {
	bootInto(t, time.Now(), map[string]string{TraceContextEnv: traceparent})
	own := trace.SpanContextFromContext(Extract(context.Background(), os.Getenv(TraceContextEnv)))
	caller := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true})
	ctx, span := started(t, trace.ContextWithRemoteSpanContext(context.Background(), caller))
	if got := span.Parent(); !got.Equal(caller) {
		t.Errorf("got parent %v, want %v", got, caller)
	}
	if got := span.SpanContext(); got.TraceID() != caller.TraceID() || got.SpanID() != own.SpanID() {
		t.Errorf("got %v, want span %v of the caller's trace", got, own.SpanID())
	}
	if got := trace.SpanContextFromContext(ctx); !got.Equal(caller) {
		t.Errorf("the first container is below %v, want %v", got, caller)
	}
}

func TestAShimThatWasNotBootedMakesNoSpan(t *testing.T) {
	for _, value := range []string{"", "hello"} {
		t.Setenv(TraceContextEnv, value)
		recorder, provider := newProvider()
		ctx := StartShim(context.Background(), provider, time.Now())
		if trace.SpanContextFromContext(ctx).IsValid() || len(recorder.Ended()) > 0 {
			t.Errorf("%q: got %v", value, recorder.Ended())
		}
	}
}

func TestAMalformedBootStillHasItsIdentity(t *testing.T) {
	for _, value := range []string{"", "{", `{"began":-1}`, `{"began":"x"}`} {
		t.Setenv(TraceContextEnv, traceparent)
		t.Setenv(bootEnv, value)
		before := time.Now()
		_, span := started(t, context.Background())
		if got := span.SpanContext().SpanID().String(); got != spanID {
			t.Errorf("%q: got %s, want %s", value, got, spanID)
		}
		if span.StartTime().Before(before.Add(-time.Minute)) {
			t.Errorf("%q: began %v", value, span.StartTime())
		}
	}
}

func TestEveryBootHasAnIdentityOfItsOwn(t *testing.T) {
	seen := map[trace.SpanID]bool{}
	for range 10 {
		bootInto(t, time.Now(), nil)
		seen[trace.SpanContextFromContext(Extract(context.Background(), os.Getenv(TraceContextEnv))).SpanID()] = true
	}
	if got, want := len(seen), 10; got != want {
		t.Errorf("got %d identities, want %d", got, want)
	}
}

// FuzzStartShim starts a shim in an environment that may have anything: there is one
// span of its start, or none, and it ends when it has begun, or later.
func FuzzStartShim(f *testing.F) {
	for _, b := range []string{
		"", `{"began":1700000000000000000,"parent":"` + traceparent + `"}`, `{"began":-1}`, `{"began":9223372036854775807}`, `{"began":1e30,"parent":null}`, "[", "null",
		`{"began":1,"parent":"{\"traceparent\":\"x\"}"}`, `{"parent":"` + "\xff" + `"}`,
		`{"began":1700000000000000000,"exec":1700000000000000001}`, `{"began":5,"exec":4}`, `{"exec":4}`,
	} {
		f.Add(traceparent, b)
		f.Add("", b)
	}
	f.Fuzz(func(t *testing.T, own, b string) {
		if strings.ContainsRune(own+b, 0) {
			return // not in an environment
		}
		t.Setenv(TraceContextEnv, own)
		t.Setenv(bootEnv, b)
		recorder, provider := newProvider()
		before := time.Now()
		StartShim(context.Background(), provider, time.Now())
		spans := recorder.Ended()
		if valid := trace.SpanContextFromContext(Extract(context.Background(), own)).IsValid(); (len(spans) > 0) != valid {
			t.Errorf("got %d spans of a start that is %q", len(spans), own)
		}
		if len(spans) > 0 {
			checkStart(t, spans)
			spans = spans[len(spans)-1:]
		}
		for _, span := range spans {
			if span.Name() != ShimStart || span.EndTime().Before(span.StartTime()) || span.EndTime().Before(before) {
				t.Errorf("got %s from %v to %v", span.Name(), span.StartTime(), span.EndTime())
			}
		}
	})
}
