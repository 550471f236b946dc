package otlp

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

// requests counts what is asked of a collector without a service for metrics.
type requests struct{ atomic.Int32 }

func (r *requests) grpc(t *testing.T) sdkmetric.Exporter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go server.Serve(l)
	t.Cleanup(server.Stop)
	e, err := otlpmetricgrpc.New(t.Context(), otlpmetricgrpc.WithEndpoint(l.Addr().String()), otlpmetricgrpc.WithInsecure(),
		otlpmetricgrpc.WithDialOption(grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			r.Add(1)
			return call(ctx, method, req, reply, conn, opts...)
		})))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (r *requests) http(t *testing.T) sdkmetric.Exporter { return r.answer(t, http.StatusNotFound) }

// answer is an exporter to a server that always has the same answer.
func (r *requests) answer(t *testing.T, code int) sdkmetric.Exporter {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r.Add(1)
		http.Error(w, "404 is no good text to look for", code)
	}))
	t.Cleanup(server.Close)
	e, err := otlpmetrichttp.New(t.Context(), otlpmetrichttp.WithEndpointURL(server.URL+"/v1/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// lines are those that the log has got since.
func lines(t *testing.T) *logtest.Hook {
	t.Helper()
	hook := &logtest.Hook{}
	before, out := log.L.Logger.ReplaceHooks(logrus.LevelHooks{}), log.L.Logger.Out
	log.L.Logger.AddHook(hook)
	log.L.Logger.SetOutput(io.Discard)
	t.Cleanup(func() { log.L.Logger.ReplaceHooks(before); log.L.Logger.SetOutput(out) })
	return hook
}

func TestACollectorThatTakesNoMetricsIsAskedOnceInAnHour(t *testing.T) {
	for name, exporter := range map[string]func(*requests, *testing.T) sdkmetric.Exporter{
		"gRPC": (*requests).grpc, "HTTP": (*requests).http,
	} {
		t.Run(name, func(t *testing.T) {
			var asked requests
			hook := lines(t)
			e := &patientExporter{Exporter: exporter(&asked, t)}
			for range 3 {
				if err := e.Export(t.Context(), &metricdata.ResourceMetrics{}); err != nil {
					t.Errorf("got %v, want it to be said once, in the log", err)
				}
			}
			if got := asked.Load(); got != 1 {
				t.Errorf("it has been asked %d times, want once", got)
			}
			e.refused = e.refused.Add(-refusedTime)
			if err := e.Export(t.Context(), &metricdata.ResourceMetrics{}); err != nil {
				t.Error(err)
			}
			if got := asked.Load(); got != 2 {
				t.Errorf("it has been asked %d times, want once more after an hour", got)
			}
			entries := hook.AllEntries()
			if len(entries) != 1 || entries[0].Level != logrus.InfoLevel || !strings.Contains(entries[0].Message, "OTEL_METRICS_EXPORTER=none") {
				t.Errorf("the log has %d lines, want one that says what to do", len(entries))
			}
		})
	}
}

func TestWhatElseGoesWrongIsAnError(t *testing.T) {
	for _, code := range []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusInternalServerError} {
		var asked requests
		hook := lines(t)
		e := &patientExporter{Exporter: asked.answer(t, code)}
		for range 2 {
			if err := e.Export(t.Context(), &metricdata.ResourceMetrics{}); err == nil {
				t.Errorf("%d: got no error", code)
			}
		}
		if got := asked.Load(); got != 2 {
			t.Errorf("%d: it has been asked %d times, want 2", code, got)
		}
		if n := len(hook.AllEntries()); n > 0 {
			t.Errorf("%d: %d lines in the log", code, n)
		}
	}
	var down requests
	e := &patientExporter{Exporter: down.answer(t, http.StatusOK)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if err := e.Export(ctx, &metricdata.ResourceMetrics{}); err == nil {
		t.Error("out of time: got no error")
	}
}

// exported is what a collector gets of a shim with the given variables, ENDPOINT being
// the collector's, that counts to 2 and to 3; and what is reported.
func exported(t *testing.T, c *collector.Collector, env map[string]string) (metrics map[string]collector.Metric, reports []string) {
	t.Helper()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+c.Addr())
	for k, v := range env {
		t.Setenv("OTEL_"+k, strings.ReplaceAll(v, "COLLECTOR", c.Addr()))
	}
	provider, shutdown := Setup(Shim{ID: "ns/id"}, nil, func(err error) { reports = append(reports, err.Error()) })
	if provider == nil {
		t.Fatalf("no telemetry: %v", reports)
	}
	ctx, span := provider.Tracer("test").Start(t.Context(), "span")
	count, err := otel.Meter("test").Int64Counter("count")
	if err != nil {
		t.Fatal(err)
	}
	times, err := otel.Meter("test").Float64Histogram("times")
	if err != nil {
		t.Fatal(err)
	}
	count.Add(ctx, 2)
	count.Add(ctx, 3)
	times.Record(ctx, 7)
	span.End()
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := len(c.Spans()); got != 1 {
		t.Errorf("%d spans, want one", got)
	}
	metrics = map[string]collector.Metric{}
	for _, m := range c.Metrics() {
		metrics[m.Name] = m
	}
	return metrics, reports
}

func TestEveryVariableOfMetrics(t *testing.T) {
	requested := func(t *testing.T, c *collector.Collector) collector.Request {
		t.Helper()
		for _, r := range c.Requests() {
			if r.Metrics > 0 {
				return r
			}
		}
		t.Fatal("there are no metrics")
		return collector.Request{}
	}
	const service = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
	for _, tt := range []struct {
		name  string
		env   map[string]string
		check func(*testing.T, *collector.Collector, map[string]collector.Metric)
	}{
		{"none", nil, func(t *testing.T, c *collector.Collector, m map[string]collector.Metric) {
			r := requested(t, c)
			if r.Protocol != "http/protobuf" || r.Path != "/v1/metrics" {
				t.Errorf("got %s to %s", r.Protocol, r.Path)
			}
			count, times := m["count"], m["times"]
			if count.Resource["service.name"] != ServiceName || count.Resource["service.instance.id"] != "ns/id" {
				t.Errorf("got the resource %v", count.Resource)
			}
			if count.Kind != "counter" || !count.Cumulative || count.Points[0].Value != 5 {
				t.Errorf("got %+v, want a cumulative count of 5", count)
			}
			if p := times.Points[0]; times.Kind != "histogram" || p.Value != 7 || len(p.Exemplars) != 1 || p.Exemplars[0] != c.Spans()[0].TraceID {
				t.Errorf("got %+v, want a histogram with the trace as its exemplar", times)
			}
		}},
		{"PROTOCOL", map[string]string{"EXPORTER_OTLP_PROTOCOL": "grpc"}, func(t *testing.T, c *collector.Collector, _ map[string]collector.Metric) {
			if r := requested(t, c); r.Protocol != "grpc" || r.Path != service {
				t.Errorf("got %s to %s", r.Protocol, r.Path)
			}
		}},
		{"METRICS_PROTOCOL", map[string]string{"EXPORTER_OTLP_METRICS_PROTOCOL": "grpc", "EXPORTER_OTLP_METRICS_HEADERS": "a=b", "EXPORTER_OTLP_HEADERS": "a=c"},
			func(t *testing.T, c *collector.Collector, _ map[string]collector.Metric) {
				if r := requested(t, c); r.Protocol != "grpc" || r.Header.Get("a") != "b" {
					t.Errorf("got %s with %v", r.Protocol, r.Header)
				}
			}},
		{"METRICS_ENDPOINT", map[string]string{"EXPORTER_OTLP_METRICS_ENDPOINT": "http://COLLECTOR/some/metrics"}, func(t *testing.T, c *collector.Collector, _ map[string]collector.Metric) {
			if r := requested(t, c); r.Path != "/some/metrics" {
				t.Errorf("got %s", r.Path)
			}
		}},
		{"METRICS_COMPRESSION", map[string]string{"EXPORTER_OTLP_METRICS_COMPRESSION": "gzip"}, func(t *testing.T, c *collector.Collector, _ map[string]collector.Metric) {
			if r := requested(t, c); r.Header.Get("Content-Encoding") != "gzip" {
				t.Errorf("got %v", r.Header)
			}
		}},
		{"TEMPORALITY_PREFERENCE", map[string]string{"EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}, func(t *testing.T, _ *collector.Collector, m map[string]collector.Metric) {
			if m["count"].Cumulative || m["times"].Cumulative {
				t.Errorf("got %+v, want deltas", m)
			}
		}},
		{"DEFAULT_HISTOGRAM_AGGREGATION", map[string]string{"EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram"},
			func(t *testing.T, _ *collector.Collector, m map[string]collector.Metric) {
				if times, ok := m["times"]; !ok || times.Kind == "histogram" {
					t.Errorf("got %+v, want an exponential one", times)
				}
			}},
		{"METRICS_EXEMPLAR_FILTER", map[string]string{"METRICS_EXEMPLAR_FILTER": "always_off"}, func(t *testing.T, _ *collector.Collector, m map[string]collector.Metric) {
			if got := m["times"].Points[0].Exemplars; len(got) > 0 {
				t.Errorf("got the exemplars %v", got)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := collector.Start()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			metrics, reports := exported(t, c, tt.env)
			if len(reports) > 0 {
				t.Errorf("reports: %q", reports)
			}
			tt.check(t, c, metrics)
		})
	}
}

// What is wrong with the variables of metrics is no trouble to traces.
func TestMetricsThatAreOff(t *testing.T) {
	for _, tt := range []struct {
		name  string
		env   map[string]string
		wrong string // the variable that is reported
	}{
		{"none", map[string]string{"METRICS_EXPORTER": "none"}, ""},
		{"an endpoint of traces alone", map[string]string{"EXPORTER_OTLP_ENDPOINT": "", "EXPORTER_OTLP_TRACES_ENDPOINT": "http://COLLECTOR/v1/traces"}, ""},
		{"another exporter", map[string]string{"METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER"},
		{"two exporters", map[string]string{"METRICS_EXPORTER": "otlp,console"}, "OTEL_METRICS_EXPORTER"},
		{"another protocol", map[string]string{"EXPORTER_OTLP_METRICS_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"},
		{"no endpoint", map[string]string{"EXPORTER_OTLP_METRICS_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := collector.Start()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			metrics, reports := exported(t, c, tt.env)
			if len(metrics) > 0 {
				t.Errorf("got %v", metrics)
			}
			if (len(reports) > 0) != (tt.wrong != "") || len(reports) > 1 || tt.wrong != "" && !strings.Contains(reports[0], "metrics are off: "+tt.wrong+": ") {
				t.Errorf("reports %q, want one of %q", reports, tt.wrong)
			}
		})
	}
}

func TestAnIntervalThatIsNoneIsReportedAndNotTaken(t *testing.T) {
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	metrics, reports := exported(t, c, map[string]string{"METRIC_EXPORT_INTERVAL": "often"})
	if len(metrics) == 0 || len(reports) != 1 || !strings.Contains(reports[0], "OTEL_METRIC_EXPORT_INTERVAL") {
		t.Errorf("got %d metrics, reports %q", len(metrics), reports)
	}
}

func TestWhereMetricsHangSpansArriveAndAShutdownTakesTwoSeconds(t *testing.T) {
	for _, protocol := range []string{protocolGRPC, protocolHTTP} {
		t.Run(protocol, func(t *testing.T) {
			c, err := collector.Start()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			vars := Variables{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + c.Addr(), "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_METRIC_EXPORT_INTERVAL": "10",
				"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://" + l.Addr().String() + "/v1/metrics",
			}
			provider, shutdown := Setup(Shim{ID: "ns/id"}, vars, func(error) {})
			_, span := provider.Tracer("test").Start(t.Context(), "span")
			count, err := otel.Meter("test").Int64Counter("count")
			if err != nil {
				t.Fatal(err)
			}
			count.Add(t.Context(), 1)
			span.End()
			time.Sleep(100 * time.Millisecond) // an export is on its way
			began := time.Now()
			if err := shutdown(t.Context()); err == nil {
				t.Error("got no error")
			}
			if took := time.Since(began); took > flushTimeout+time.Second {
				t.Errorf("it took %s", took)
			}
			if got := len(c.Spans()); got != 1 {
				t.Errorf("%d spans, want one", got)
			}
		})
	}
}
