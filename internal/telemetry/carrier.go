package telemetry

import (
	"context"
	"encoding/json"
	"strings"

	"go.opentelemetry.io/contrib/propagators/envcar"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

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

// Outgoing is ctx for a call by gRPC, which is made in the span of ctx, if it has one.
func Outgoing(ctx context.Context) context.Context {
	headers := propagation.MapCarrier{}
	propagator.Inject(ctx, headers)
	for name, value := range headers {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	return ctx
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
	return extract(ctx, propagator, headers)
}

// lowerCase are headers whose names are all in lower case, whatever a propagator
// calls them.
type lowerCase struct{ propagation.MapCarrier }

// Get implements [propagation.TextMapCarrier].
func (c lowerCase) Get(name string) string { return c.MapCarrier.Get(strings.ToLower(name)) }

// ExtractCaller returns ctx with the remote span that the headers of a caller name,
// or as it is when they name none. Their names are in lower case; how they name it
// is up to the propagator of the process.
func ExtractCaller(ctx context.Context, headers map[string]string) context.Context {
	return extract(ctx, otel.GetTextMapPropagator(), lowerCase{headers})
}

func extract(ctx context.Context, p propagation.TextMapPropagator, headers propagation.TextMapCarrier) context.Context {
	extracted := p.Extract(ctx, headers)
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
