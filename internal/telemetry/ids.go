package telemetry

import (
	"context"
	crand "crypto/rand"

	"go.opentelemetry.io/otel/trace"
)

// presetKey is where a context has the identity of the next span to be made.
type presetKey struct{}

// IDGenerator makes random ids, but for a span whose identity was given away
// before it could be made. It implements the interface of that name of the SDK.
type IDGenerator struct{}

// NewIDs makes the ids of a root span.
func (IDGenerator) NewIDs(ctx context.Context) (t trace.TraceID, s trace.SpanID) {
	if sc, ok := ctx.Value(presetKey{}).(trace.SpanContext); ok {
		return sc.TraceID(), sc.SpanID()
	}
	crand.Read(t[:])
	crand.Read(s[:])
	return t, s
}

// NewSpanID makes the id of a span in a trace.
func (IDGenerator) NewSpanID(ctx context.Context, _ trace.TraceID) (s trace.SpanID) {
	if sc, ok := ctx.Value(presetKey{}).(trace.SpanContext); ok {
		return sc.SpanID()
	}
	crand.Read(s[:])
	return s
}
