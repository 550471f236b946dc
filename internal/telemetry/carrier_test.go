package telemetry

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"
)

const (
	traceID     = "0af7651916cd43dd8448eb211c80319c"
	spanID      = "b7ad6b7169203331"
	traceparent = "00-" + traceID + "-" + spanID + "-01"
)

// remote is a span of another process.
func remote(t *testing.T, flags trace.TraceFlags, state string) trace.SpanContext {
	t.Helper()
	tid, err1 := trace.TraceIDFromHex(traceID)
	sid, err2 := trace.SpanIDFromHex(spanID)
	ts, err3 := trace.ParseTraceState(state)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: tid, SpanID: sid, TraceFlags: flags, TraceState: ts, Remote: true})
}

// members are those of baggage, which has them in any order.
func members(b baggage.Baggage) []string {
	return slices.Sorted(strings.SplitSeq(b.String(), ","))
}

func TestASpanCrossesToAChildWithAllItsHeaders(t *testing.T) {
	for _, tt := range []struct {
		name           string
		flags          trace.TraceFlags
		state, baggage string
	}{
		{"traceparent alone", trace.FlagsSampled, "", ""},
		{"not sampled", 0, "", ""},
		{"tracestate", trace.FlagsSampled, "vendor=a:b,other=c", ""},
		{"baggage", trace.FlagsSampled, "", "user=alice,place=caf%C3%A9"},
		{"all", trace.FlagsSampled, "vendor=1", "k=v;property=1"},
		{"a lot", trace.FlagsSampled, "vendor=" + strings.Repeat("x", 256), "k=" + strings.Repeat("v", 4000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := remote(t, tt.flags, tt.state)
			ctx := trace.ContextWithSpanContext(context.Background(), want)
			wantBaggage, err := baggage.Parse(tt.baggage)
			if err != nil {
				t.Fatal(err)
			}
			ctx = Extract(context.Background(), Inject(baggage.ContextWithBaggage(ctx, wantBaggage)))
			if got := trace.SpanContextFromContext(ctx); !got.Equal(want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if got, want := members(baggage.FromContext(ctx)), members(wantBaggage); !slices.Equal(got, want) {
				t.Errorf("got baggage %q, want %q", got, want)
			}
		})
	}
}

func TestWithoutASpanThereIsNothingToCarry(t *testing.T) {
	b, err := baggage.Parse("user=alice")
	if err != nil {
		t.Fatal(err)
	}
	for name, ctx := range map[string]context.Context{
		"nothing": context.Background(),
		"baggage": baggage.ContextWithBaggage(context.Background(), b),
	} {
		if got := Inject(ctx); got != "" {
			t.Errorf("%s: got %q, want nothing", name, got)
		}
	}
}

func TestABareTraceparentIsRead(t *testing.T) {
	want := remote(t, trace.FlagsSampled, "")
	for _, value := range []string{traceparent, " " + traceparent + "\n", `{"traceparent":"` + traceparent + `"}`, `{"traceparent":"` + traceparent + `","unknown":"x"}`} {
		if got := trace.SpanContextFromContext(Extract(context.Background(), value)); !got.Equal(want) {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
}

func TestAMalformedTraceContextIsIgnored(t *testing.T) {
	before := trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}}))
	want := trace.SpanContextFromContext(before)
	for name, value := range map[string]string{
		"nothing":                   "",
		"text":                      "hello",
		"no JSON":                   "{",
		"an empty object":           "{}",
		"another type":              `["` + traceparent + `"]`,
		"a number":                  `{"traceparent":1}`,
		"null":                      `{"traceparent":null}`,
		"garbage behind":            `{"traceparent":"` + traceparent + `"}x`,
		"a short trace id":          "00-0af7651916cd43dd-b7ad6b7169203331-01",
		"no trace id":               "00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"no span id":                "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"upper case":                strings.ToUpper(traceparent),
		"not hexadecimal":           "00-zaf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"the forbidden version":     "ff" + traceparent[2:],
		"more than the version has": traceparent + "-00",
		"tracestate alone":          `{"tracestate":"a=b"}`,
		"two in one":                traceparent + "," + traceparent,
		"too long":                  `{"traceparent":"` + traceparent + `","x":"` + strings.Repeat("x", maxTraceContext) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			if got := trace.SpanContextFromContext(Extract(context.Background(), value)); got.IsValid() {
				t.Errorf("got %v, want none", got)
			}
			if got := trace.SpanContextFromContext(Extract(before, value)); !got.Equal(want) {
				t.Errorf("got %v, want what was there, %v", got, want)
			}
		})
	}
}

func TestMalformedCompanionsDoNotTakeTheSpanWithThem(t *testing.T) {
	want := remote(t, trace.FlagsSampled, "")
	for _, headers := range []map[string]string{
		{"traceparent": traceparent, "tracestate": "no state"},
		{"traceparent": traceparent, "baggage": "no baggage;;,="},
	} {
		value, err := json.Marshal(headers)
		if err != nil {
			t.Fatal(err)
		}
		if got := trace.SpanContextFromContext(Extract(context.Background(), string(value))); !got.Equal(want) {
			t.Errorf("%s: got %v, want %v", value, got, want)
		}
	}
}

func FuzzExtract(f *testing.F) {
	for _, s := range []string{
		"", traceparent, `{"traceparent":"` + traceparent + `"}`, `{"traceparent":"` + traceparent + `","tracestate":"a=b","baggage":"k=v"}`,
		"{", `{"traceparent":null}`, "00-00-00-00", `{"baggage":"k=v"}`, strings.Replace(traceparent, "00-", "ff-", 1), strings.ToUpper(traceparent), traceparent + "-more",
		`{"traceparent":"` + traceparent + `","tracestate":"` + strings.Repeat("a=b,", 40) + `","baggage":"` + strings.Repeat("k=%ff,", 2000) + `"}`,
		`{"traceparent":"` + traceparent + `","traceparent":"x","Traceparent":1}`, `{"traceparent":"` + traceparent + `","baggage":"` + "\xff" + `=\u0000;p"}`,
		"\x00" + traceparent, " \n" + traceparent + "\t", strings.Repeat("{", 20000), strings.Repeat(" ", maxTraceContext+1) + traceparent,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		ctx := Extract(context.Background(), value)
		sc := trace.SpanContextFromContext(ctx)
		if !sc.IsValid() {
			if ctx != context.Background() {
				t.Errorf("got %v of what is malformed", ctx)
			}
			return
		}
		if !sc.IsRemote() || !slices.Contains([]trace.TraceFlags{0, 1, 2, 3}, sc.TraceFlags()) {
			t.Errorf("got %v", sc)
		}
		// It goes on to every process, whose environment it must not fill.
		next := Inject(ctx)
		if len(next) > maxTraceContext || strings.ContainsAny(next, "\x00\n") {
			t.Errorf("%d bytes go on: %.100q", len(next), next)
		}
		again := Extract(context.Background(), next)
		if got := trace.SpanContextFromContext(again); !got.Equal(sc) {
			t.Errorf("got %v again, want %v", got, sc)
		}
		if got, want := baggage.FromContext(again).String(), baggage.FromContext(ctx).String(); len(got) != len(want) {
			t.Errorf("got the baggage %q again, want %q", got, want)
		}
	})
}
