package telemetry

import (
	"context"
	"encoding/json"
	"strings"

	"go.opentelemetry.io/contrib/propagators/envcar"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// TraceContextEnv is the variable that carries a span to a child.
const TraceContextEnv = relay.TraceContextEnv

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
	var value strings.Builder
	encoder := json.NewEncoder(&value)
	encoder.SetEscapeHTML(false) // baggage is full of what that makes six bytes of
	if err := encoder.Encode(headers); err != nil {
		return "" // a map of strings always has an encoding
	}
	return strings.TrimSuffix(value.String(), "\n")
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
	return ExtractHeaders(ctx, headers)
}

// ExtractHeaders returns ctx with the remote span that the W3C headers name, or
// as it is when they name none.
func ExtractHeaders(ctx context.Context, headers map[string]string) context.Context {
	extracted := propagator.Extract(ctx, propagation.MapCarrier(headers))
	if trace.SpanContextFromContext(extracted).Equal(trace.SpanContextFromContext(ctx)) {
		return ctx // without baggage that belongs to no trace
	}
	return extracted
}

// maxEnviron bounds what a guest is given of a trace, bytes: it goes by the control
// socket, where JSON may make six of one.
const maxEnviron = 10_000

// environ is the environment that carries the span of ctx to a guest that asks for it.
// Baggage that there is no room for is left out, as the W3C has it.
//
// See https://opentelemetry.io/docs/specs/otel/context/env-carriers/.
func environ(ctx context.Context) (env []string) {
	room := maxEnviron
	carrier := envcar.Carrier{SetEnvFunc: func(name, value string) {
		if kv := name + "=" + value; value != "" && len(kv) <= room {
			room -= len(kv)
			env = append(env, kv)
		}
	}}
	propagator.Inject(ctx, &carrier)
	return env
}
