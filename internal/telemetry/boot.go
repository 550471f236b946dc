package telemetry

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Boot is when a shim has come so far: a `start` has begun, has answered, and it can be
// called. Nothing is traced before, since what a `start` may not do is wait, or print
// anything but its answer.
type Boot struct{ Began, Answered, Served time.Time }

// StartShim makes the shim.start span of this process, which ends now, with its stages, and
// returns the context of the trace that the first container belongs to: the caller's, when
// ctx has a remote span; else the one of TRACECONTEXT or TRACEPARENT in the environment;
// else a new one.
func StartShim(ctx context.Context, provider trace.TracerProvider, b Boot) context.Context {
	called := trace.SpanContextFromContext(ctx).IsValid()
	parent := ctx
	if !called {
		parent = Extract(ctx, ownParent())
	}
	started, span := provider.Tracer(scope).Start(parent, ShimStart, trace.WithTimestamp(b.Began))
	span.SetAttributes(ProcessPID.Int(os.Getpid()))
	for _, stage := range []struct {
		name     string
		from, to time.Time
	}{{ShimListen, b.Began, b.Answered}, {ShimServe, b.Answered, b.Served}} {
		_, span := Start(started, stage.name, trace.WithTimestamp(stage.from))
		End(span, nil, trace.WithTimestamp(stage.to))
	}
	span.End()
	Measure(started, ShimStart, b.Began, nil)
	if called {
		return ctx
	}
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(started))
}

// ownParent is what the environment of this process names as its parent.
func ownParent() string {
	if v := os.Getenv(TraceContextEnv); v != "" {
		return v
	}
	if v := os.Getenv("TRACEPARENT"); v != "" {
		headers, err := json.Marshal(map[string]string{
			"traceparent": v, "tracestate": os.Getenv("TRACESTATE"), "baggage": os.Getenv("BAGGAGE"),
		})
		if err == nil {
			return string(headers)
		}
	}
	return ""
}
