package telemetry

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const (
	// ServiceName is the service every shim reports as, whatever container it
	// has: a service per container would be of no use to a trace store.
	ServiceName = "containerd-shim-wazero"

	scope = "github.com/containerd-shim-wazero/containerd-shim-wazero"
)

// flushTimeout bounds how long a shutdown waits for the collector.
const flushTimeout = 2 * time.Second

// endpointVariables name the collector, the first that is set wins.
//
// See https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
var endpointVariables = []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"}

// Enabled tells whether the environment names a collector.
func Enabled() bool { return endpoint() != "" }

func endpoint() string {
	for _, name := range endpointVariables {
		if v := strings.TrimSpace(os.Getenv(name)); v != "" {
			return v
		}
	}
	return ""
}

// Setup starts the export of spans, as the OTEL_ variables of the environment
// say, for the shim with the given id. It does not wait for the collector, and
// what the collector does is reported to onError only.
//
// Shutdown flushes and stops it, within 2 s. Without an endpoint Setup must not
// be called: see [Enabled].
func Setup(ctx context.Context, id string, onError func(error)) (_ trace.TracerProvider, shutdown func(context.Context) error, _ error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(onError))
	var opts []otlptracegrpc.Option
	u, err := url.Parse(endpoint())
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("OTLP endpoint: %w", err)
	case u.Host == "":
		return nil, nil, fmt.Errorf("OTLP endpoint %q: not of the form http://host:port", endpoint())
	case u.Scheme == "grpc":
		// Not known to the exporter, which would take it for TLS.
		u.Scheme = "http"
		opts = append(opts, otlptracegrpc.WithEndpointURL(u.String()))
	}
	exporter, err := otlptracegrpc.New(ctx, opts...)
	if err != nil {
		return nil, nil, fmt.Errorf("OTLP exporter: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithIDGenerator(idGenerator{}),
		sdktrace.WithResource(resource.NewSchemaless(
			semconv.ServiceName(serviceName()),
			semconv.ServiceInstanceID(id),
			semconv.ProcessPID(os.Getpid()),
		)),
	)
	return provider, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		return provider.Shutdown(ctx)
	}, nil
}

// serviceName heeds OTEL_SERVICE_NAME, but for the value that containerd sets
// for itself and its children inherit.
func serviceName() string {
	if name := os.Getenv("OTEL_SERVICE_NAME"); name != "" && name != "containerd" {
		return name
	}
	return ServiceName
}
