// Package otlp exports the shim's telemetry, as the OTEL_ variables say. It is
// apart from package telemetry because an instance process, which has none of it,
// need not start it either.
package otlp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/contrib/propagators/autoprop"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// ServiceName is the service every shim reports as, whatever container it
// has: a service per container would be of no use to a trace store.
const ServiceName = "containerd-shim-wazero"

// flushTimeout bounds how long a shutdown waits for the collector.
const flushTimeout = 2 * time.Second

// deleteTime is what containerd takes for the rest of a Delete, when its shim is on its
// way out: the processor is its own until then.
const deleteTime = 30 * time.Millisecond

// A Shim is the one whose telemetry it is.
type Shim struct{ ID, Version string }

// Setup starts the export of telemetry, as vars and the OTEL_ variables of the
// environment say. It waits for no collector. What is wrong with a variable, and
// how exports fail, is given to report and to nobody else.
//
// Shutdown flushes and stops it, within 2 s. Provider is nil when there is no
// telemetry.
func Setup(shim Shim, vars Variables, report func(error)) (provider trace.TracerProvider, shutdown func(context.Context) error) {
	var stop []func(context.Context) error
	vars.Use(func() {
		t, err := newTarget(traces)
		if t == nil && err == nil {
			return
		}
		r := &reporter{report: discreet(report)}
		otel.SetErrorHandler(r)
		otel.SetLogger(logr.New(r))
		// net/http's, which quotes a server that answers what it was not asked. The error of
		// the export says it again.
		log.SetOutput(io.Discard)
		res := r.resource(shim)
		// It has been read: the providers would read it once more, and complain again.
		defer setenv(map[string]string{"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": ""})()
		var p *sdktrace.TracerProvider
		if err == nil {
			p, err = r.tracerProvider(t, res)
		}
		if err != nil {
			report(fmt.Errorf("telemetry is off: %w", err))
			return
		}
		provider, stop = p, append(stop, p.Shutdown)
		switch m, err := r.meterProvider(res); {
		case err != nil:
			report(fmt.Errorf("metrics are off: %w", err))
		case m != nil:
			otel.SetMeterProvider(m)
			stop = append(stop, func(ctx context.Context) error {
				err := m.Shutdown(ctx)
				if err == nil || ctx.Err() != nil {
					return err
				}
				r.Handle(err) // of its last export, like that of spans
				return nil
			})
		}
		r.reading("OTEL_PROPAGATORS", func() { otel.SetTextMapPropagator(autoprop.NewTextMapPropagator()) })
	})
	return provider, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if len(stop) > 0 {
			time.Sleep(deleteTime)
		}
		errs := make([]error, len(stop))
		var stopped sync.WaitGroup
		for i, f := range stop {
			stopped.Go(func() { errs[i] = f(ctx) })
		}
		stopped.Wait()
		return errors.Join(errs...)
	}
}

// resource is what is said of the shim as a whole.
func (r *reporter) resource(shim Shim) (res *resource.Resource) {
	r.reading("OTEL_RESOURCE_ATTRIBUTES", func() {
		var err error
		res, err = resource.New(context.Background(),
			resource.WithTelemetrySDK(),
			resource.WithHost(),
			resource.WithAttributes(
				semconv.ServiceName(ServiceName),
				semconv.ServiceInstanceID(shim.ID),
				semconv.ServiceVersion(shim.Version),
				semconv.ProcessPID(os.Getpid()),
			),
			resource.WithFromEnv(), // goes before those above
		)
		if err != nil {
			r.Handle(err) // the rest of it is there
		}
	})
	return res
}

func (r *reporter) tracerProvider(t *target, res *resource.Resource) (p *sdktrace.TracerProvider, err error) {
	var e *otlptrace.Exporter
	err = r.exporting(t, func(c *tls.Config) (err error) {
		var client otlptrace.Client
		if t.protocol == protocolGRPC {
			opts := []otlptracegrpc.Option{otlptracegrpc.WithDialOption(grpc.WithConnectParams(reconnecting))}
			if c != nil {
				opts = append(opts, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(c)))
			}
			client = otlptracegrpc.NewClient(opts...)
		} else {
			var opts []otlptracehttp.Option
			if c != nil {
				opts = append(opts, otlptracehttp.WithTLSClientConfig(c))
			}
			client = otlptracehttp.NewClient(opts...)
		}
		e, err = otlptrace.New(context.Background(), client)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer setenv(batching(r.report))()
	r.reading("OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG", func() {
		p = sdktrace.NewTracerProvider(
			sdktrace.WithBatcher(exporter{e, t.load}),
			sdktrace.WithIDGenerator(telemetry.IDGenerator{}),
			sdktrace.WithResource(res),
		)
	})
	return p, nil
}

// An exporter of spans has what it needs loaded by the first export, which is
// nobody's to wait for.
type exporter struct {
	sdktrace.SpanExporter
	load func() error
}

// ExportSpans implements [sdktrace.SpanExporter].
func (e exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.load(); err != nil {
		return err
	}
	return e.SpanExporter.ExportSpans(ctx, spans)
}
