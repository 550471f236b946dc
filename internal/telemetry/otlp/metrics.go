package otlp

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/log"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// meterProvider exports metrics, for as long as the collector takes any; nil when they
// are not to be sent.
//
// One that stores only traces takes none: that is said once, in the log, and none are
// sent for an hour.
func (r *reporter) meterProvider(res *resource.Resource) (p *sdkmetric.MeterProvider, err error) {
	t, err := newTarget(metrics)
	if t == nil || err != nil {
		return nil, err
	}
	var exporter sdkmetric.Exporter
	err = r.exporting(t, func(c *tls.Config) (err error) {
		if t.protocol == protocolGRPC {
			var opts []otlpmetricgrpc.Option
			if c != nil {
				opts = append(opts, otlpmetricgrpc.WithTLSCredentials(credentials.NewTLS(c)))
			}
			exporter, err = otlpmetricgrpc.New(context.Background(), opts...)
			return err
		}
		var opts []otlpmetrichttp.Option
		if c != nil {
			opts = append(opts, otlpmetrichttp.WithTLSClientConfig(c))
		}
		exporter, err = otlpmetrichttp.New(context.Background(), opts...)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.reading("OTEL_METRIC_EXPORT_INTERVAL, OTEL_METRIC_EXPORT_TIMEOUT", func() {
		p = sdkmetric.NewMeterProvider(
			sdkmetric.WithReader(sdkmetric.NewPeriodicReader(&patientExporter{Exporter: exporter})),
			sdkmetric.WithResource(res),
		)
	})
	return p, nil
}

// refusedTime is how long no metrics are sent to a collector that takes none. It may
// have been given a service for them by then.
const refusedTime = time.Hour

// A patientExporter does not go on at a collector that takes no metrics. It is the one
// of a periodic reader, which exports one time after the other.
type patientExporter struct {
	sdkmetric.Exporter
	refused time.Time // when the collector last said so; zero if it never has
}

// Export implements [sdkmetric.Exporter].
func (e *patientExporter) Export(ctx context.Context, m *metricdata.ResourceMetrics) error {
	if !e.refused.IsZero() && time.Since(e.refused) < refusedTime {
		return nil
	}
	err := e.Exporter.Export(ctx, m)
	if !takesNone(err) {
		return err
	}
	if e.refused.IsZero() {
		log.L.Info("telemetry: the collector takes no metrics, so none are sent: OTEL_METRICS_EXPORTER=none says so from the start")
	}
	e.refused = time.Now()
	return nil
}

// takesNone tells whether err, of an export, says that the collector has no service for
// metrics.
func takesNone(err error) bool {
	if err == nil {
		return false
	}
	if status.Code(err) == codes.Unimplemented {
		return true
	}
	// The exporter over HTTP has no type for it.
	return strings.Contains(err.Error(), fmt.Sprintf(": %d %s (body: ", http.StatusNotFound, http.StatusText(http.StatusNotFound)))
}
