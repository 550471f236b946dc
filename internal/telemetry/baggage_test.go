package telemetry

import (
	"context"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"
)

func TestBaggageWithoutATraceIsIgnored(t *testing.T) {
	ctx := Extract(context.Background(), `{"traceparent":"bad","baggage":"a=b"}`)
	if got := baggage.FromContext(ctx).Len(); got != 0 {
		t.Errorf("%d members of baggage, want none", got)
	}
}

func TestMuchBaggageSurvivesTheWay(t *testing.T) {
	member, err := baggage.NewMemberRaw("k", strings.Repeat("&", 4000))
	if err != nil {
		t.Fatal(err)
	}
	bag, err := baggage.New(member)
	if err != nil {
		t.Fatal(err)
	}
	want := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	ctx := trace.ContextWithSpanContext(baggage.ContextWithBaggage(context.Background(), bag), want)
	back := Extract(context.Background(), Inject(ctx))
	if got := trace.SpanContextFromContext(back); got.TraceID() != want.TraceID() || got.SpanID() != want.SpanID() {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := baggage.FromContext(back).Member("k").Value(); len(got) != 4000 {
		t.Errorf("%d bytes of baggage, want 4000", len(got))
	}
}
