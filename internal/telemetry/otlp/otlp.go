// Package otlp exports the shim's spans. It is apart from package telemetry
// because an instance process, which has none of it, need not start it either.
package otlp

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// ServiceName is the service every shim reports as, whatever container it
// has: a service per container would be of no use to a trace store.
const ServiceName = "containerd-shim-wazero"

// flushTimeout bounds how long a shutdown waits for the collector.
const flushTimeout = 2 * time.Second

// Setup starts the export of spans, as the OTEL_ variables of the environment
// say, for the shim with the given id. It does not wait for the collector, and
// what the collector does is reported to onError only.
//
// Shutdown flushes and stops it, within 2 s. Without an endpoint Setup must not
// be called: see [telemetry.Enabled].
func Setup(ctx context.Context, id string, onError func(error)) (_ trace.TracerProvider, shutdown func(context.Context) error, _ error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(onError))
	var opts []otlptracegrpc.Option
	u, err := url.Parse(telemetry.Endpoint())
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("OTLP endpoint: %w", err)
	case u.Host == "":
		return nil, nil, fmt.Errorf("OTLP endpoint %q: not of the form http://host:port", telemetry.Endpoint())
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
		sdktrace.WithIDGenerator(telemetry.IDGenerator{}),
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
