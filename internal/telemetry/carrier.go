package telemetry

import (
	"context"
	"encoding/json"
	"strings"

	"go.opentelemetry.io/otel/propagation"
)

// TraceContextEnv is the variable in the environment of every process the shim
// re-executes that names the span it was started under. Its value is a JSON
// object of the W3C headers:
//
//	{"traceparent":"00-…","tracestate":"…","baggage":"…"}
//
// A bare traceparent is read as well.
//
// See https://www.w3.org/TR/trace-context/ and https://www.w3.org/TR/baggage/.
const TraceContextEnv = "TRACECONTEXT"

// maxTraceContext bounds what is read of a value, bytes: four times what the
// W3C asks a propagator to carry (512 of tracestate, 8192 of baggage).
const maxTraceContext = 32 << 10

var propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})

// Inject returns the value of [TraceContextEnv] for the span of ctx; empty when
// it has none.
func Inject(ctx context.Context) string {
	headers := propagation.MapCarrier{}
	propagator.Inject(ctx, headers)
	if headers["traceparent"] == "" {
		return ""
	}
	value, err := json.Marshal(headers)
	if err != nil {
		return "" // a map of strings always marshals
	}
	return string(value)
}

// Extract returns ctx with the remote span that value, of [TraceContextEnv],
// names. A malformed value is ignored: ctx is returned as it is.
func Extract(ctx context.Context, value string) context.Context {
	if value == "" || len(value) > maxTraceContext {
		return ctx
	}
	headers := propagation.MapCarrier{}
	if strings.HasPrefix(value, "{") {
		if err := json.Unmarshal([]byte(value), &headers); err != nil {
			return ctx
		}
	} else {
		headers["traceparent"] = strings.TrimSpace(value)
	}
	return propagator.Extract(ctx, headers)
}

// ExtractHeaders returns ctx with the remote span that the W3C headers name, or
// as it is when they name none.
func ExtractHeaders(ctx context.Context, headers map[string]string) context.Context {
	return propagator.Extract(ctx, propagation.MapCarrier(headers))
}
