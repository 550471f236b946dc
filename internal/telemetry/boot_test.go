package telemetry

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// booted is a boot that began then, and took 10 ms.
func booted(began time.Time) Boot {
	return Boot{began, began.Add(3 * time.Millisecond), began.Add(10 * time.Millisecond)}
}

// startedIn has the environment of a `start`, of which these are all that counts.
func startedIn(t *testing.T, env map[string]string) {
	t.Helper()
	for _, name := range []string{TraceContextEnv, "TRACEPARENT", "TRACESTATE", "BAGGAGE"} {
		t.Setenv(name, env[name])
	}
}

// started is the span of a shim that calls StartShim, which has its stages below it.
func started(t *testing.T, ctx context.Context, b Boot) (context.Context, sdktrace.ReadOnlySpan) {
	t.Helper()
	recorder, provider := newProvider()
	ctx = StartShim(ctx, provider, b)
	ended := recorder.Ended()
	if got := names(ended); !slices.Equal(got, []string{ShimListen, ShimServe, ShimStart}) {
		t.Fatalf("got %v, want %s and its stages", got, ShimStart)
	}
	start := ended[2]
	for i, stage := range ended[:2] {
		if stage.Parent().SpanID() != start.SpanContext().SpanID() || stage.SpanContext().SpanID() == start.SpanContext().SpanID() {
			t.Errorf("%s is %v below %v, want a span below %v", stage.Name(), stage.SpanContext(), stage.Parent(), start.SpanContext())
		}
		from, to := []time.Time{b.Began, b.Answered}[i], []time.Time{b.Answered, b.Served}[i]
		if !stage.StartTime().Equal(from) || !stage.EndTime().Equal(to) {
			t.Errorf("%s is from %v to %v, want %v to %v", stage.Name(), stage.StartTime(), stage.EndTime(), from, to)
		}
	}
	if !start.StartTime().Equal(b.Began) || start.EndTime().Before(b.Served) {
		t.Errorf("%s is from %v to %v, want it from %v, until after %v", start.Name(), start.StartTime(), start.EndTime(), b.Began, b.Served)
	}
	return ctx, start
}

func TestTheStartOfTheShimIsBelowWhatStartWasGiven(t *testing.T) {
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
			startedIn(t, tt.env)
			ctx, span := started(t, context.Background(), booted(time.Unix(1700000000, 123456789)))
			if got := span.SpanContext(); !got.IsSampled() || got.TraceState().String() != tt.state {
				t.Errorf("got %v, want one that is sampled, of state %q", got, tt.state)
			}
			if got, want := attrs(span)[ProcessPID], any(int64(os.Getpid())); got != want {
				t.Errorf("got pid %v, want %v", got, want)
			}
			if got := span.Parent(); got.IsValid() != (tt.parent != "") || tt.parent != "" && (got.SpanID().String() != tt.parent || got.TraceID().String() != traceID) {
				t.Errorf("got parent %v, want %q", got, tt.parent)
			}
			if got := trace.SpanContextFromContext(ctx); got.SpanID() != span.SpanContext().SpanID() {
				t.Errorf("the first container is below %v, want %v", got, span.SpanContext())
			}
		})
	}
}

func TestAnUnsampledParentKeepsTheStartOfTheShimUnsampled(t *testing.T) {
	startedIn(t, map[string]string{TraceContextEnv: strings.TrimSuffix(traceparent, "01") + "00"})
	recorder, provider := newProvider()
	ctx := StartShim(context.Background(), provider, booted(time.Now()))
	if got := recorder.Ended(); len(got) > 0 {
		t.Errorf("got %v, want no span", got)
	}
	if got := trace.SpanContextFromContext(ctx); got.TraceID().String() != traceID || got.IsSampled() {
		t.Errorf("got %v, want the trace %s, not sampled", got, traceID)
	}
}

func TestTheStartOfTheShimJoinsTheCallersTrace(t *testing.T) {
	startedIn(t, map[string]string{TraceContextEnv: traceparent})
	caller := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true})
	ctx, span := started(t, trace.ContextWithRemoteSpanContext(context.Background(), caller), booted(time.Now().Add(-time.Second)))
	if got := span.Parent(); !got.Equal(caller) {
		t.Errorf("got parent %v, want %v", got, caller)
	}
	if got := trace.SpanContextFromContext(ctx); !got.Equal(caller) {
		t.Errorf("the first container is below %v, want %v", got, caller)
	}
}
