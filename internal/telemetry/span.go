// Package telemetry makes the spans of a container's life: where they go, what
// they are called, and how they cross from one process to the next.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/containerd-shim-wazero/containerd-shim-wazero"

// Start starts a span below the one of ctx, by the provider that made that one.
// Without a span in ctx it does nothing and costs nothing.
func Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.SpanContext().IsValid() {
		return ctx, parent
	}
	return parent.TracerProvider().Tracer(scope).Start(ctx, name, opts...)
}

// StartOperation starts a span by the given provider, below the one of ctx, which
// may be remote, or at the root of a new trace.
func StartOperation(ctx context.Context, provider trace.TracerProvider, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	return provider.Tracer(scope).Start(ctx, name, opts...)
}

// End ends a span that covers an operation with the result err.
func End(span trace.Span, err error, opts ...trace.SpanEndOption) {
	if err != nil {
		span.SetStatus(codes.Error, text(err.Error(), maxError))
		span.SetAttributes(ErrorType.String(errorType(err)))
	}
	span.End(opts...)
}

// maxError bounds what a span says of an error, bytes: a hook's last words are
// half of it.
const maxError = 8 << 10

// text is the first limit bytes of s, as a span may have them: in a batch with a
// text that is not UTF-8, every span is lost.
func text(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(s, "\ufffd")
}

// errorType names the class of an error, of which there are few.
func errorType(err error) string {
	for _, class := range []error{
		context.Canceled, context.DeadlineExceeded,
		errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument,
		errdefs.ErrFailedPrecondition, errdefs.ErrNotImplemented,
	} {
		if errors.Is(err, class) {
			return class.Error()
		}
	}
	return fmt.Sprintf("%T", err)
}

// Stage runs f in a span below the one of ctx.
func Stage(ctx context.Context, name string, f func(context.Context) error) error {
	ctx, span := Start(ctx, name)
	err := f(ctx)
	End(span, err)
	return err
}

// endpointVariables name the collector, the first that is set wins.
//
// See https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
var endpointVariables = []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"}

// Enabled tells whether the environment names a collector.
func Enabled() bool { return Endpoint() != "" }

// Endpoint is the collector that the environment names, or empty.
func Endpoint() string {
	for _, name := range endpointVariables {
		if v := strings.TrimSpace(os.Getenv(name)); v != "" {
			return v
		}
	}
	return ""
}
