package telemetry

import (
	"context"
	crand "crypto/rand"
	"encoding/json"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
)

// The `start` process exports nothing: it would have to wait for the collector.
// It hands on what the shim needs to make the shim.start span: the span's own
// identity in TRACECONTEXT, and here when it began and what it is a child of.
const bootEnv = "WAZERO_SHIM_START"

type boot struct {
	Began  int64  `json:"began"` // nanoseconds since 1970
	Exec   int64  `json:"exec"`  // as Began; when the shim was about to be executed
	Parent string `json:"parent,omitempty"`
}

// Boot is the environment that a `start` process which began at the given time
// gives the shim.
//
// A `start` must print nothing but its answer, so what is wrong with its own
// environment is not said.
func Boot(began time.Time) []string {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	parent := ownParent()
	sc := trace.SpanContextFromContext(Extract(context.Background(), parent))
	config := trace.SpanContextConfig{TraceID: sc.TraceID(), TraceFlags: sc.TraceFlags(), TraceState: sc.TraceState()}
	if !sc.IsValid() {
		parent = ""
		config.TraceFlags = trace.FlagsSampled
		crand.Read(config.TraceID[:])
	}
	crand.Read(config.SpanID[:])
	ctx := trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(config))
	data, err := json.Marshal(boot{Began: began.UnixNano(), Exec: time.Now().UnixNano(), Parent: parent})
	if err != nil {
		return nil
	}
	return []string{TraceContextEnv + "=" + Inject(ctx), bootEnv + "=" + string(data)}
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

// StartShim makes the shim.start span of this process, which has been served since
// the given time and ends now, with its stages, and returns the context of the trace that the first container belongs to: the
// caller's, when ctx has a remote span; else the one of TRACECONTEXT. Without
// either, ctx is returned as it is.
func StartShim(ctx context.Context, provider trace.TracerProvider, served time.Time) context.Context {
	own := trace.SpanContextFromContext(Extract(context.Background(), os.Getenv(TraceContextEnv)))
	if !own.IsValid() {
		return ctx
	}
	var b boot
	began := time.Now()
	timed := json.Unmarshal([]byte(os.Getenv(bootEnv)), &b) == nil && b.Began > 0 && b.Began < began.UnixNano()
	if timed {
		began = time.Unix(0, b.Began)
	}
	called := trace.SpanContextFromContext(ctx).IsValid()
	parent := ctx
	if !called {
		parent = Extract(ctx, b.Parent)
	}
	parent = context.WithValue(parent, presetKey{}, own)
	started, span := provider.Tracer(scope).Start(parent, ShimStart, trace.WithTimestamp(began))
	span.SetAttributes(ProcessPID.Int(os.Getpid()))
	if timed && b.Began <= b.Exec && b.Exec <= served.UnixNano() {
		exec := time.Unix(0, b.Exec)
		for _, stage := range []struct {
			name     string
			from, to time.Time
		}{{ShimListen, began, exec}, {ShimExec, exec, served}} {
			_, span := Start(context.WithValue(started, presetKey{}, nil), stage.name, trace.WithTimestamp(stage.from))
			End(span, nil, trace.WithTimestamp(stage.to))
		}
	}
	span.End()
	Measure(started, ShimStart, began, nil)
	if called {
		return ctx
	}
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(started))
}

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
