// Package telemetry makes the spans of a container's life: where they go, what
// they are called, and how they cross from one process to the next.
package telemetry

import (
	"context"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

const scope = "github.com/containerd-shim-wazero/containerd-shim-wazero"

// attributesKey is where a context has the attributes of all spans that are started
// in it.
type attributesKey struct{}

// WithAttributes returns ctx with attributes for its span, and for every one that
// [Start] and [StartOperation] make below it.
func WithAttributes(ctx context.Context, attrs ...attribute.KeyValue) context.Context {
	trace.SpanFromContext(ctx).SetAttributes(attrs...)
	before, _ := ctx.Value(attributesKey{}).([]attribute.KeyValue)
	return context.WithValue(ctx, attributesKey{}, slices.Concat(before, attrs))
}

func start(ctx context.Context, tracer trace.Tracer, name string, opts []trace.SpanStartOption) (context.Context, trace.Span) {
	if attrs, ok := ctx.Value(attributesKey{}).([]attribute.KeyValue); ok {
		opts = append([]trace.SpanStartOption{trace.WithAttributes(attrs...)}, opts...)
	}
	return tracer.Start(ctx, name, opts...)
}

// Start starts a span below the one of ctx, by the provider that made that one.
// Without a span in ctx it does nothing and costs nothing. [End] also measures it.
func Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.SpanContext().IsValid() {
		return ctx, parent
	}
	ctx, _ = start(ctx, parent.TracerProvider().Tracer(scope), name, opts)
	return ctx, newStage(ctx, name, opts)
}

// StartOperation starts a span by the given provider, below the one of ctx, which
// may be remote, or at the root of a new trace. There may be several for one operation:
// they are not measured, see [Measure].
func StartOperation(ctx context.Context, provider trace.TracerProvider, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	return start(ctx, provider.Tracer(scope), name, opts)
}

// End ends a span that covers an operation with the result err. Its status is an
// error exactly when err is one.
func End(span trace.Span, err error, opts ...trace.SpanEndOption) {
	if err != nil {
		span.SetStatus(codes.Error, text(err.Error(), maxError))
		span.SetAttributes(ErrorType.String(ErrorTypeOf(err)))
	}
	if s, ok := span.(*stage); ok {
		s.ended(err, opts)
	}
	span.End(opts...)
}

const (
	// maxError bounds what a span says of an error, bytes: a hook's last words are
	// half of it.
	maxError = 8 << 10
	// maxText bounds an attribute that comes from elsewhere, bytes.
	maxText = relay.MaxText
)

// Text is s as an attribute may have it: of 1 KiB at most, and UTF-8.
func Text(s string) string { return text(s, maxText) }

// text is the first limit bytes of s, as a span may have them: in a batch with a
// text that is not UTF-8, every span is lost.
func text(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(s, "\ufffd")
}

// Stage runs f in a span below the one of ctx.
func Stage(ctx context.Context, name string, f func(context.Context) error) (err error) {
	ctx, span := Start(ctx, name)
	err = ErrPanic // until f returns
	defer func() { End(span, err) }()
	err = f(ctx)
	return err
}

// Past makes the span of a stage that began at the given time and has just ended,
// with the result err, below the span of ctx.
func Past(ctx context.Context, name string, began time.Time, err error, attrs ...attribute.KeyValue) {
	_, span := Start(ctx, name, trace.WithTimestamp(began), trace.WithAttributes(attrs...))
	End(span, err)
}
