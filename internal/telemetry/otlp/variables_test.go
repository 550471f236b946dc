package otlp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

// env are variables; of exporters' the name is without OTEL_EXPORTER_OTLP_, of others
// without OTEL_. In values ADDR is the collector's address, ROOTS, CERT and KEY are
// the files for its TLS, and EMPTY is one with nothing in it.
type env map[string]string

// saw is what the receiver did, see [look].
type saw map[string]string

// The names of services of gRPC and HTTP.
const (
	grpcTraces = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	httpTraces = "/v1/traces"
)

// one is a row of the table: variables, and what came of them.
type one struct {
	name string
	env  env
	saw  saw
	says string // the variables that the one warning names
}

const (
	secret       = "s3cr3t"
	parentTrace  = "0af7651916cd43dd8448eb211c80319c"
	parentSpan   = "b7ad6b7169203331"
	parentHeader = "00-" + parentTrace + "-" + parentSpan
)

var table = []one{
	{"an endpoint", env{"X_ENDPOINT": "http://ADDR"}, saw{"requests": "1", "protocol": "http/protobuf", "path": httpTraces, "spans": "1"}, ""},
	{"with a path", env{"X_ENDPOINT": "http://ADDR/base/"}, saw{"path": "/base" + httpTraces}, ""},
	{"of traces", env{"X_ENDPOINT": "http://127.0.0.1:1", "X_TRACES_ENDPOINT": "http://ADDR/own/"}, saw{"path": "/own/"}, ""},
	{"of traces, without a path", env{"X_TRACES_ENDPOINT": "http://ADDR"}, saw{"path": "/"}, ""},
	{"grpc://", env{"X_ENDPOINT": "grpc://ADDR"}, saw{"protocol": "grpc", "path": grpcTraces, "spans": "1"}, ""},
	{"grpc:// of traces", env{"X_ENDPOINT": "http://127.0.0.1:1", "X_TRACES_ENDPOINT": "grpc://ADDR/path"}, saw{"path": grpcTraces}, ""},
	{"blanks about it", env{"X_ENDPOINT": "  http://ADDR\n"}, saw{"spans": "1"}, ""},
	{"a password", env{"X_ENDPOINT": "http://user:" + secret + "@ADDR"}, saw{"spans": "1", "header Authorization": ""}, ""},
	{"a malformed one", env{"X_ENDPOINT": "http://user:" + secret + "/@ADDR:port"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_ENDPOINT"},
	{"a malformed one of traces", env{"X_ENDPOINT": "http://ADDR", "X_TRACES_ENDPOINT": "collector"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"},
	{"no endpoint", env{"X_PROTOCOL": "no such", "TRACES_SAMPLER": "no such"}, saw{"requests": "0"}, ""},

	{"PROTOCOL", env{"X_ENDPOINT": "http://ADDR", "X_PROTOCOL": "grpc"}, saw{"protocol": "grpc", "path": grpcTraces}, ""},
	{"TRACES_PROTOCOL", env{"X_ENDPOINT": "http://ADDR", "X_PROTOCOL": "grpc", "X_TRACES_PROTOCOL": "http/protobuf"}, saw{"protocol": "http/protobuf", "path": httpTraces}, ""},
	{"JSON", env{"X_ENDPOINT": "http://ADDR", "X_PROTOCOL": "http/json"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_PROTOCOL"},
	{"JSON for traces", env{"X_ENDPOINT": "http://ADDR", "X_PROTOCOL": "grpc", "X_TRACES_PROTOCOL": "http/json"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"},

	{"INSECURE", env{"X_ENDPOINT": "ADDR", "X_PROTOCOL": "grpc", "X_INSECURE": "true"}, saw{"protocol": "grpc", "spans": "1"}, ""},
	{"TRACES_INSECURE", env{"X_ENDPOINT": "ADDR", "X_PROTOCOL": "grpc", "X_INSECURE": "false", "X_TRACES_INSECURE": "true"}, saw{"spans": "1"}, ""},

	{"HEADERS", env{"X_ENDPOINT": "http://ADDR", "X_HEADERS": "Authorization=Bearer%20" + secret + ",a=b"}, saw{"header Authorization": "Bearer " + secret, "header A": "b"}, ""},
	{"HEADERS by gRPC", env{"X_ENDPOINT": "grpc://ADDR", "X_HEADERS": "authorization=Bearer%20" + secret}, saw{"header Authorization": "Bearer " + secret}, ""},
	{"TRACES_HEADERS", env{"X_ENDPOINT": "http://ADDR", "X_HEADERS": "a=all,b=all", "X_TRACES_HEADERS": "a=traces"}, saw{"header A": "traces", "header B": ""}, ""},
	{"a malformed header", env{"X_ENDPOINT": "http://ADDR", "X_HEADERS": "a=b," + secret}, saw{"header A": "b", "spans": "1"}, "OTEL_EXPORTER_OTLP_HEADERS"},
	{"a header with a malformed escape", env{"X_ENDPOINT": "grpc://ADDR", "X_TRACES_HEADERS": "a=b,c=" + secret + "%" + secret}, saw{"header A": "b", "spans": "1"}, "OTEL_EXPORTER_OTLP_TRACES_HEADERS"},

	{"TIMEOUT", env{"X_ENDPOINT": "grpc://ADDR", "X_TIMEOUT": "4000"}, saw{"header Grpc-Timeout": "<4s"}, ""},
	{"TRACES_TIMEOUT", env{"X_ENDPOINT": "grpc://ADDR", "X_TIMEOUT": "9000", "X_TRACES_TIMEOUT": "3000"}, saw{"header Grpc-Timeout": "<3s"}, ""},
	{"no number", env{"X_ENDPOINT": "http://ADDR", "X_TIMEOUT": "1s"}, saw{"spans": "1"}, "OTEL_EXPORTER_OTLP_TIMEOUT"},

	{"COMPRESSION", env{"X_ENDPOINT": "http://ADDR", "X_COMPRESSION": "gzip"}, saw{"header Content-Encoding": "gzip", "spans": "1"}, ""},
	{"COMPRESSION by gRPC", env{"X_ENDPOINT": "grpc://ADDR", "X_COMPRESSION": "gzip"}, saw{"header Grpc-Encoding": "gzip", "spans": "1"}, ""},
	{"TRACES_COMPRESSION", env{"X_ENDPOINT": "http://ADDR", "X_COMPRESSION": "gzip", "X_TRACES_COMPRESSION": "none"}, saw{"header Content-Encoding": "", "spans": "1"}, ""},

	{"another compression", env{"X_ENDPOINT": "http://ADDR", "X_TRACES_COMPRESSION": "zstd"}, saw{"header Content-Encoding": "", "spans": "1"}, "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"},

	{"CERTIFICATE", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "ROOTS"}, saw{"spans": "1", "client": ""}, ""},
	{"CERTIFICATE by gRPC", env{"X_ENDPOINT": "https://ADDR", "X_PROTOCOL": "grpc", "X_CERTIFICATE": "ROOTS"}, saw{"spans": "1", "client": ""}, ""},
	{"TRACES_CERTIFICATE", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "/no/such", "X_TRACES_CERTIFICATE": "ROOTS"}, saw{"spans": "1"}, ""},
	{"of host:port", env{"X_ENDPOINT": "ADDR", "X_PROTOCOL": "grpc", "X_INSECURE": "no", "X_CERTIFICATE": "ROOTS"}, saw{"spans": "1"}, ""},
	{"INSECURE is not about https://", env{"X_ENDPOINT": "https://ADDR", "X_PROTOCOL": "grpc", "X_INSECURE": "true", "X_CERTIFICATE": "ROOTS"}, saw{"spans": "1"}, ""},
	{"CLIENT_CERTIFICATE, CLIENT_KEY", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "ROOTS", "X_CLIENT_CERTIFICATE": "CERT", "X_CLIENT_KEY": "KEY"}, saw{"client": collector.Client}, ""},
	{"the same by gRPC", env{"X_ENDPOINT": "https://ADDR", "X_PROTOCOL": "grpc", "X_CERTIFICATE": "ROOTS", "X_CLIENT_CERTIFICATE": "CERT", "X_CLIENT_KEY": "KEY"}, saw{"client": collector.Client}, ""},
	{"TRACES_CLIENT_CERTIFICATE, TRACES_CLIENT_KEY", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "ROOTS", "X_CLIENT_CERTIFICATE": "/no", "X_CLIENT_KEY": "/no", "X_TRACES_CLIENT_CERTIFICATE": "CERT", "X_TRACES_CLIENT_KEY": "KEY"}, saw{"client": collector.Client}, ""},
	{"a file that is not there", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "/no/such"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_CERTIFICATE"},
	{"a device", env{"X_ENDPOINT": "https://ADDR", "X_PROTOCOL": "grpc", "X_TRACES_CERTIFICATE": "/dev/zero"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"},
	{"no certificate", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "EMPTY"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_CERTIFICATE"},
	{"no key", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "ROOTS", "X_CLIENT_CERTIFICATE": "CERT"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"},
	{"a key alone", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "ROOTS", "X_CLIENT_KEY": "KEY"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_CLIENT_KEY"},
	{"a key that is none", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "ROOTS", "X_CLIENT_CERTIFICATE": "CERT", "X_CLIENT_KEY": "EMPTY"}, saw{"requests": "0"}, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY"},
	{"files of no use without TLS", env{"X_ENDPOINT": "http://ADDR", "X_CERTIFICATE": "/no/such", "X_CLIENT_KEY": "/no/such"}, saw{"spans": "1"}, ""},

	{"all of TLS, of metrics as well", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "ROOTS", "X_CLIENT_CERTIFICATE": "CERT", "X_CLIENT_KEY": "KEY", "metric": "1"}, saw{"metrics": "1", "client of metrics": collector.Client, "client": collector.Client}, ""},
	{"the same by gRPC", env{"X_ENDPOINT": "https://ADDR", "X_PROTOCOL": "grpc", "X_CERTIFICATE": "ROOTS", "X_CLIENT_CERTIFICATE": "CERT", "X_CLIENT_KEY": "KEY", "metric": "1"}, saw{"metrics": "1", "client of metrics": collector.Client, "client": collector.Client}, ""},
	{"METRICS_CERTIFICATE", env{"X_ENDPOINT": "https://ADDR", "X_CERTIFICATE": "/no", "X_TRACES_CERTIFICATE": "ROOTS", "X_METRICS_CERTIFICATE": "ROOTS", "metric": "1"}, saw{"spans": "1", "metrics": "1"}, ""},

	{"no SERVICE_NAME", env{"X_ENDPOINT": "http://ADDR"}, saw{
		"resource service.name": ServiceName, "resource service.instance.id": "ns/id", "resource service.version": "v1",
		"resource process.pid": fmt.Sprint(os.Getpid()), "resource host.name": hostname(), "resource telemetry.sdk.language": "go",
	}, ""},
	{"SERVICE_NAME", env{"X_ENDPOINT": "http://ADDR", "SERVICE_NAME": "mine"}, saw{"resource service.name": "mine"}, ""},
	{"RESOURCE_ATTRIBUTES", env{"X_ENDPOINT": "http://ADDR", "RESOURCE_ATTRIBUTES": "deployment.environment.name=a%20b,service.version=v2"}, saw{
		"resource deployment.environment.name": "a b", "resource service.version": "v2", "resource service.name": ServiceName, "resource service.instance.id": "ns/id",
	}, ""},
	{"both", env{"X_ENDPOINT": "http://ADDR", "RESOURCE_ATTRIBUTES": "service.name=attributed", "SERVICE_NAME": "mine"}, saw{"resource service.name": "mine"}, ""},
	{"malformed attributes", env{"X_ENDPOINT": "http://ADDR", "RESOURCE_ATTRIBUTES": "a=b,c"}, saw{"resource a": "b", "resource service.name": ServiceName}, "OTEL_RESOURCE_ATTRIBUTES"},

	{"TRACES_SAMPLER always_on", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "always_on", "traceparent": parentHeader + "-00"}, saw{"spans": "1"}, ""},
	{"always_off", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "always_off", "traceparent": parentHeader + "-01"}, saw{"requests": "0"}, ""},
	{"none, for a caller that samples not", env{"X_ENDPOINT": "http://ADDR", "traceparent": parentHeader + "-00"}, saw{"requests": "0"}, ""},
	{"parentbased_always_off", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "parentbased_always_off"}, saw{"requests": "0"}, ""},
	{"parentbased_always_off, for a caller that samples", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "parentbased_always_off", "traceparent": parentHeader + "-01"}, saw{"spans": "1"}, ""},
	{"TRACES_SAMPLER_ARG 0", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "traceidratio", "TRACES_SAMPLER_ARG": "0"}, saw{"requests": "0"}, ""},
	{"TRACES_SAMPLER_ARG 1.0", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "parentbased_traceidratio", "TRACES_SAMPLER_ARG": "1.0"}, saw{"spans": "1"}, ""},
	{"an argument that is none", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "traceidratio", "TRACES_SAMPLER_ARG": "half"}, saw{"spans": "1"}, "OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG"},
	{"a sampler that is none", env{"X_ENDPOINT": "http://ADDR", "TRACES_SAMPLER": "no_such"}, saw{"spans": "1"}, "OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG"},

	{"BSP_SCHEDULE_DELAY", env{"X_ENDPOINT": "http://ADDR", "BSP_SCHEDULE_DELAY": "1", "wait": "1"}, saw{"spans": "1"}, ""},
	{"none", env{"X_ENDPOINT": "http://ADDR", "BSP_SCHEDULE_DELAY": "0"}, saw{"spans": "1"}, "OTEL_BSP_SCHEDULE_DELAY"},
	{"BSP_MAX_EXPORT_BATCH_SIZE", env{"X_ENDPOINT": "http://ADDR", "BSP_MAX_EXPORT_BATCH_SIZE": "1", "spans": "3"}, saw{"requests": "3", "spans": "3"}, ""},
	{"a negative size of a batch", env{"X_ENDPOINT": "http://ADDR", "BSP_MAX_EXPORT_BATCH_SIZE": "-1", "spans": "3"}, saw{"requests": "1"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"},
	{"a negative size of the queue", env{"X_ENDPOINT": "http://ADDR", "BSP_MAX_QUEUE_SIZE": "-1"}, saw{"spans": "1"}, "OTEL_BSP_MAX_QUEUE_SIZE"},
	{"a queue larger than the memory", env{"X_ENDPOINT": "http://ADDR", "BSP_MAX_QUEUE_SIZE": "1000000000000"}, saw{"spans": "1"}, "OTEL_BSP_MAX_QUEUE_SIZE"},
	{"no size", env{"X_ENDPOINT": "http://ADDR", "BSP_MAX_QUEUE_SIZE": "many"}, saw{"spans": "1"}, "OTEL_BSP_MAX_QUEUE_SIZE"},
	{"no delay", env{"X_ENDPOINT": "http://ADDR", "BSP_EXPORT_TIMEOUT": "1s"}, saw{"spans": "1"}, "OTEL_BSP_EXPORT_TIMEOUT"},

	{"no limits", env{"X_ENDPOINT": "http://ADDR"}, saw{"attributes": "2", "attribute a": "12345", "events": "2", "event attributes": "2", "links": "2", "link attributes": "2"}, ""},
	{"ATTRIBUTE_COUNT_LIMIT", env{"X_ENDPOINT": "http://ADDR", "ATTRIBUTE_COUNT_LIMIT": "1"}, saw{"attributes": "1"}, ""},
	{"SPAN_ATTRIBUTE_COUNT_LIMIT", env{"X_ENDPOINT": "http://ADDR", "ATTRIBUTE_COUNT_LIMIT": "2", "SPAN_ATTRIBUTE_COUNT_LIMIT": "1"}, saw{"attributes": "1"}, ""},
	{"ATTRIBUTE_VALUE_LENGTH_LIMIT", env{"X_ENDPOINT": "http://ADDR", "ATTRIBUTE_VALUE_LENGTH_LIMIT": "3"}, saw{"attribute a": "123"}, ""},
	{"SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", env{"X_ENDPOINT": "http://ADDR", "ATTRIBUTE_VALUE_LENGTH_LIMIT": "4", "SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "2"}, saw{"attribute a": "12"}, ""},
	{"SPAN_EVENT_COUNT_LIMIT", env{"X_ENDPOINT": "http://ADDR", "SPAN_EVENT_COUNT_LIMIT": "1"}, saw{"events": "1"}, ""},
	{"SPAN_LINK_COUNT_LIMIT", env{"X_ENDPOINT": "http://ADDR", "SPAN_LINK_COUNT_LIMIT": "1"}, saw{"links": "1"}, ""},
	{"EVENT_ATTRIBUTE_COUNT_LIMIT", env{"X_ENDPOINT": "http://ADDR", "EVENT_ATTRIBUTE_COUNT_LIMIT": "1"}, saw{"event attributes": "1"}, ""},
	{"LINK_ATTRIBUTE_COUNT_LIMIT", env{"X_ENDPOINT": "http://ADDR", "LINK_ATTRIBUTE_COUNT_LIMIT": "1"}, saw{"link attributes": "1"}, ""},
	{"no limit", env{"X_ENDPOINT": "http://ADDR", "SPAN_LINK_COUNT_LIMIT": "few"}, saw{"links": "2"}, "OTEL_SPAN_LINK_COUNT_LIMIT"},

	{"no PROPAGATORS", env{"X_ENDPOINT": "http://ADDR", "traceparent": parentHeader + "-01", "b3": "0"}, saw{"trace": parentTrace, "parent": parentSpan}, ""},
	{"PROPAGATORS b3", env{"X_ENDPOINT": "http://ADDR", "PROPAGATORS": "b3,baggage", "traceparent": parentHeader + "-00", "b3": parentTrace + "-" + parentSpan + "-1"}, saw{"trace": parentTrace, "parent": parentSpan}, ""},
	{"xray, whose header has upper case", env{"X_ENDPOINT": "http://ADDR", "PROPAGATORS": "xray", "x-amzn-trace-id": "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=" + parentSpan + ";Sampled=1"}, saw{"trace": parentTrace, "parent": parentSpan}, ""},
	{"jaeger", env{"X_ENDPOINT": "http://ADDR", "PROPAGATORS": "jaeger", "uber-trace-id": parentTrace + ":" + parentSpan + ":0:1"}, saw{"trace": parentTrace, "parent": parentSpan}, ""},
	{"none", env{"X_ENDPOINT": "http://ADDR", "PROPAGATORS": "none", "traceparent": parentHeader + "-00"}, saw{"spans": "1", "parent": ""}, ""},
	{"one that is none", env{"X_ENDPOINT": "http://ADDR", "PROPAGATORS": "no_such", "traceparent": parentHeader + "-01"}, saw{"parent": parentSpan}, "OTEL_PROPAGATORS"},

	{"TRACES_EXPORTER otlp", env{"X_ENDPOINT": "http://ADDR", "TRACES_EXPORTER": "otlp"}, saw{"spans": "1"}, ""},
	{"none", env{"X_ENDPOINT": "http://ADDR", "TRACES_EXPORTER": "none"}, saw{"requests": "0"}, ""},
	{"another", env{"X_ENDPOINT": "http://ADDR", "TRACES_EXPORTER": "zipkin"}, saw{"requests": "0"}, "OTEL_TRACES_EXPORTER"},
	{"SDK_DISABLED", env{"X_ENDPOINT": "http://ADDR", "SDK_DISABLED": "TRUE", "X_PROTOCOL": "no such"}, saw{"requests": "0"}, ""},
	{"not", env{"X_ENDPOINT": "http://ADDR", "SDK_DISABLED": "false"}, saw{"spans": "1"}, ""},
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		panic(err)
	}
	return name
}

// headers of a caller, and what the test is to do, are not variables.
var notVariables = []string{"traceparent", "b3", "x-amzn-trace-id", "uber-trace-id", "wait", "spans", "metric"}

// variables are those of e, with their names, and what else it has.
func (e env) variables(replace *strings.Replacer) (vars, others map[string]string) {
	vars, others = map[string]string{}, map[string]string{}
	for k, v := range e {
		if slices.Contains(notVariables, k) {
			others[k] = v
			continue
		}
		if rest, ok := strings.CutPrefix(k, "X_"); ok {
			k = "EXPORTER_OTLP_" + rest
		}
		vars["OTEL_"+k] = replace.Replace(v)
	}
	return vars, others
}

// noVariables has none of OpenTelemetry's in the environment of the test.
func noVariables(t *testing.T) {
	t.Helper()
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "") // restored in the end
			os.Unsetenv(name)
		}
	}
}

// reports collects what Setup reports.
type reports struct {
	mu   sync.Mutex
	errs []error // guarded by mu
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *reports) all() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.errs)
}

// emit makes a span of a caller.
func emit(t *testing.T, provider trace.TracerProvider, headers map[string]string) {
	t.Helper()
	link := func(b byte) trace.Link {
		return trace.Link{
			SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{b}, SpanID: trace.SpanID{b}}),
			Attributes:  []attribute.KeyValue{attribute.Int("a", 1), attribute.Int("b", 2)},
		}
	}
	_, span := telemetry.StartOperation(telemetry.ExtractCaller(context.Background(), headers), provider, telemetry.TaskCreate,
		trace.WithAttributes(attribute.String("a", "12345"), attribute.Int("b", 2)), trace.WithLinks(link(1), link(2)))
	for range 2 {
		span.AddEvent("event", trace.WithAttributes(attribute.Int("a", 1), attribute.Int("b", 2)))
	}
	span.End()
}

// look tells what the receiver saw of what.
func look(c *collector.Collector, what string) string {
	requests, spans := c.Requests(), c.Spans()
	metrics := slices.DeleteFunc(slices.Clone(requests), func(r collector.Request) bool { return r.Metrics == 0 })
	requests = slices.DeleteFunc(requests, func(r collector.Request) bool { return r.Spans == 0 })
	switch what {
	case "requests":
		return fmt.Sprint(len(requests))
	case "spans":
		return fmt.Sprint(len(spans))
	case "metrics":
		return fmt.Sprint(len(c.Metrics()))
	case "client of metrics":
		if len(metrics) == 0 {
			return "nothing"
		}
		return metrics[0].Client
	}
	if len(requests) == 0 || len(spans) == 0 {
		return "nothing"
	}
	r, s := requests[0], spans[0]
	kind, name, _ := strings.Cut(what, " ")
	switch {
	case what == "protocol":
		return r.Protocol
	case what == "path":
		return r.Path
	case what == "client":
		return r.Client
	case what == "trace":
		return s.TraceID
	case what == "parent":
		return s.Parent
	case what == "attributes":
		return fmt.Sprint(len(s.Attrs))
	case what == "events":
		return fmt.Sprint(len(s.Events))
	case what == "event attributes":
		return fmt.Sprint(len(s.Events[0].Attrs))
	case what == "links":
		return fmt.Sprint(len(s.Links))
	case what == "link attributes":
		return fmt.Sprint(len(s.LinkAttrs[0]))
	case kind == "attribute":
		return s.Attrs[name]
	case kind == "resource":
		return s.Resource[name]
	case name == "Grpc-Timeout":
		// In gRPC's own form, and what is left of it.
		var n int
		var unit string
		if _, err := fmt.Sscanf(r.Header.Get(name), "%d%s", &n, &unit); err != nil {
			return err.Error()
		}
		per := map[string]int{"n": 1e9, "u": 1e6, "m": 1e3, "S": 1}[unit]
		return fmt.Sprintf("<%ds", n/per+1)
	case kind == "header":
		return r.Header.Get(name)
	}
	panic(what)
}

func TestWhatAVariableSaysTheReceiverSees(t *testing.T) {
	dir := t.TempDir()
	config, files, err := collector.NewTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range table {
		for _, by := range []string{"the environment", "the host's file"} {
			t.Run(row.name+", by "+by, func(t *testing.T) {
				noVariables(t)
				var serve *tls.Config
				if row.env["X_CERTIFICATE"] == "ROOTS" || row.env["X_TRACES_CERTIFICATE"] == "ROOTS" {
					serve = config
				}
				c, err := collector.StartTLS(serve)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				values, others := row.env.variables(strings.NewReplacer(
					"ADDR", c.Addr(), "ROOTS", files.Roots, "CERT", files.Certificate, "KEY", files.Key, "EMPTY", empty))
				if others["metric"] == "" {
					values["OTEL_METRICS_EXPORTER"] = "none"
				}
				var vars Variables
				if by == "the environment" {
					for k, v := range values {
						t.Setenv(k, v)
					}
				} else {
					vars = values
				}
				var said reports
				before := os.Environ()
				provider, shutdown := Setup(Shim{ID: "ns/id", Version: "v1"}, vars, said.add)
				if after := os.Environ(); !slices.Equal(sorted(after), sorted(before)) {
					t.Errorf("the environment has become %q, was %q", after, before)
				}
				if provider != nil {
					n := 1
					fmt.Sscan(others["spans"], &n)
					for range n {
						emit(t, provider, others)
					}
					if others["metric"] != "" {
						count, err := otel.Meter("test").Int64Counter("count")
						if err != nil {
							t.Fatal(err)
						}
						count.Add(t.Context(), 1)
					}
					for others["wait"] != "" && len(c.Spans()) == 0 && t.Context().Err() == nil {
					}
					// What fails in there is said, not returned.
					if err := shutdown(t.Context()); err != nil {
						t.Errorf("shutdown: %v", err)
					}
				}
				for what, want := range row.saw {
					if got := look(c, what); got != want {
						t.Errorf("%s: got %q, want %q", what, got, want)
					}
				}
				errs := said.all()
				if (len(errs) == 1) != (row.says != "") || len(errs) > 1 {
					t.Errorf("got %q, want one about %q", errs, row.says)
				}
				for _, err := range errs {
					if text := strings.TrimPrefix(err.Error(), "telemetry is off: "); !strings.HasPrefix(text, row.says+": ") {
						t.Errorf("got %q, want one about %q", err, row.says)
					}
					if strings.Contains(err.Error(), secret) {
						t.Errorf("a secret is said: %v", err)
					}
				}
				for _, s := range c.Spans() {
					if strings.Contains(fmt.Sprint(s), secret) {
						t.Errorf("a secret is in a span: %v", s)
					}
				}
			})
		}
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

// A collector that takes a request and never answers.
func TestAnExportIsGivenUpInTime(t *testing.T) {
	for _, e := range []env{
		{"X_TIMEOUT": "50"},
		{"X_TIMEOUT": "60000", "X_TRACES_TIMEOUT": "50"},
		{"X_TIMEOUT": "60000", "BSP_EXPORT_TIMEOUT": "50"},
	} {
		for _, protocol := range []string{protocolHTTP, protocolGRPC} {
			t.Run(fmt.Sprint(e, protocol), func(t *testing.T) {
				noVariables(t)
				left := make(chan struct{}, 1)
				url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
					hang(r)
					select {
					case left <- struct{}{}:
					default:
					}
				})
				values, _ := e.variables(strings.NewReplacer())
				values["OTEL_BSP_SCHEDULE_DELAY"] = "1"
				values["OTEL_METRICS_EXPORTER"] = "none"
				values["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
				values["OTEL_EXPORTER_OTLP_PROTOCOL"] = protocol
				var said reports
				provider, shutdown := Setup(Shim{}, values, said.add)
				emit(t, provider, nil)
				select {
				case <-left:
				case <-t.Context().Done():
				}
				began := time.Now()
				_ = shutdown(t.Context()) // in vain, or not
				if took := time.Since(began); took > flushTimeout+time.Second {
					t.Errorf("shutdown took %v", took)
				}
			})
		}
	}
}

// hang does so until the client has left.
func hang(r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // only then that is seen
	<-r.Context().Done()
}

// serve is an HTTP server, of both versions.
func serve(t *testing.T, f http.HandlerFunc) (url string) {
	t.Helper()
	server := httptest.NewUnstartedServer(f)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

func TestNoMoreSpansAreHeldThanTheQueueHasRoomFor(t *testing.T) {
	noVariables(t)
	busy, release := make(chan struct{}), make(chan struct{})
	var first sync.Once
	var spans atomic.Int32
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request collectorpb.ExportTraceServiceRequest
		if err := errors.Join(err, proto.Unmarshal(body, &request)); err != nil {
			t.Error(err)
		}
		first.Do(func() {
			close(busy)
			<-release
		})
		spans.Add(int32(len(request.ResourceSpans[0].ScopeSpans[0].Spans)))
	})
	var said reports
	provider, shutdown := Setup(Shim{}, Variables{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_MAX_QUEUE_SIZE": "2", "OTEL_METRICS_EXPORTER": "none"}, said.add)
	emit(t, provider, nil)
	emit(t, provider, nil)
	<-busy
	for range 100 {
		emit(t, provider, nil)
	}
	close(release)
	if err := shutdown(t.Context()); err != nil || said.all() != nil {
		t.Error(err, said.all())
	}
	if got, want := spans.Load(), int32(4); got != want { // the batch that was on its way, and the queue
		t.Errorf("got %d spans, want %d", got, want)
	}
}

// A collector that takes what it is sent and never answers.
func TestShutdownIsOverWithinTwoSeconds(t *testing.T) {
	for _, protocol := range []string{protocolHTTP, protocolGRPC} {
		t.Run(protocol, func(t *testing.T) {
			noVariables(t)
			url := serve(t, func(_ http.ResponseWriter, r *http.Request) { hang(r) })
			var said reports
			provider, shutdown := Setup(Shim{}, Variables{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}, said.add)
			emit(t, provider, nil)
			began := time.Now()
			if err := shutdown(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want that it was late", err)
			}
			if took := time.Since(began); took > flushTimeout+time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestTheHostsFileGoesBeforeTheEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name       string
		file, have env
		want       env
	}{
		{"nothing", env{}, env{"X_ENDPOINT": "e", "X_HEADERS": "h", "SERVICE_NAME": "mine"}, env{"X_ENDPOINT": "e", "X_HEADERS": "h", "SERVICE_NAME": "mine"}},
		{"one for one", env{"TRACES_SAMPLER": "always_off", "X_HEADERS": "f"}, env{"TRACES_SAMPLER": "always_on", "X_HEADERS": "e", "X_TIMEOUT": "1"}, env{"TRACES_SAMPLER": "always_off", "X_HEADERS": "f", "X_TIMEOUT": "1"}},
		{"nothing in place of something", env{"TRACES_SAMPLER": ""}, env{"TRACES_SAMPLER": "always_off"}, env{}},
		{"all signals for one", env{"X_HEADERS": "f"}, env{"X_TRACES_HEADERS": "t", "X_METRICS_HEADERS": "m", "X_TRACES_TIMEOUT": "1"}, env{"X_HEADERS": "f", "X_TRACES_TIMEOUT": "1"}},
		{"but for what it says itself", env{"X_HEADERS": "f", "X_TRACES_HEADERS": "ft"}, env{"X_TRACES_HEADERS": "t"}, env{"X_HEADERS": "f", "X_TRACES_HEADERS": "ft"}},
		{"an endpoint for all about endpoints", env{"X_ENDPOINT": "f"}, env{"X_TRACES_ENDPOINT": "e", "X_PROTOCOL": "http/json", "X_HEADERS": "token", "X_CERTIFICATE": "c", "BSP_SCHEDULE_DELAY": "1"}, env{"X_ENDPOINT": "f", "BSP_SCHEDULE_DELAY": "1"}},
		{"one of traces as well", env{"X_TRACES_ENDPOINT": "f", "X_TRACES_HEADERS": "fh"}, env{"X_ENDPOINT": "e", "X_HEADERS": "token"}, env{"X_TRACES_ENDPOINT": "f", "X_TRACES_HEADERS": "fh"}},
		{"containerd's name", env{}, env{"SERVICE_NAME": "containerd"}, env{}},
		{"a name", env{"SERVICE_NAME": "ours"}, env{"SERVICE_NAME": "theirs"}, env{"SERVICE_NAME": "ours"}},
		{"containerd's name, from the file", env{"SERVICE_NAME": "containerd"}, env{"SERVICE_NAME": "containerd"}, env{"SERVICE_NAME": "containerd"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noVariables(t)
			file, _ := tt.file.variables(strings.NewReplacer())
			have, _ := tt.have.variables(strings.NewReplacer())
			want, _ := tt.want.variables(strings.NewReplacer())
			for k, v := range have {
				t.Setenv(k, v)
			}
			all := func() map[string]string {
				got := map[string]string{}
				for _, e := range os.Environ() {
					if name, v, _ := strings.Cut(e, "="); strings.HasPrefix(name, "OTEL_") && v != "" {
						got[name] = v
					}
				}
				return got
			}
			Variables(file).Use(func() {
				if got := all(); !maps.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
			if got := all(); !maps.Equal(got, have) {
				t.Errorf("afterwards: got %v, want %v", got, have)
			}
		})
	}
}

func TestTheTableOfTheHostsFile(t *testing.T) {
	type table = map[string]any
	for _, tt := range []struct {
		name    string
		table   any
		want    Variables
		unknown []string
		says    string
	}{
		{"none", nil, nil, nil, ""},
		{"empty", table{}, Variables{}, nil, ""},
		{"every type", table{"exporter_otlp_endpoint": "http://h:1", "exporter_otlp_timeout": int64(5000), "traces_sampler_arg": 0.25, "sdk_disabled": false}, Variables{
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "5000", "OTEL_TRACES_SAMPLER_ARG": "0.25", "OTEL_SDK_DISABLED": "false",
		}, nil, ""},
		{"in upper case", table{"SERVICE_NAME": "x"}, Variables{"OTEL_SERVICE_NAME": "x"}, nil, ""},
		{"what nothing reads", table{"service_nme": "x", "otel_service_name": "y"}, Variables{"OTEL_SERVICE_NME": "x", "OTEL_OTEL_SERVICE_NAME": "y"}, []string{"telemetry.otel_service_name", "telemetry.service_nme"}, ""},
		{"no table", "http://h:1", nil, nil, "telemetry: "},
		{"a list", table{"propagators": []any{"b3"}}, nil, nil, "telemetry.propagators: "},
		{"a table in it", table{"traces": table{}}, nil, nil, "telemetry.traces: "},
		{"a NUL", table{"service_name": "a\x00b"}, nil, nil, "telemetry.service_name: "},
		{"a name that is none", table{"a=b": "c"}, nil, nil, `telemetry."a=b": `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, unknown, err := NewVariables(tt.table)
			if !maps.Equal(got, tt.want) || !slices.Equal(unknown, tt.unknown) {
				t.Errorf("got %v, unknown %q, want %v, %q", got, unknown, tt.want, tt.unknown)
			}
			if (err == nil) != (tt.says == "") || err != nil && !strings.HasPrefix(err.Error(), tt.says) {
				t.Errorf("got %v, want an error that says %q", err, tt.says)
			}
		})
	}
}

// Every variable of the table above is one that a key of the host's file may stand
// for without a warning.
func TestTheVariablesThatAreReadAreKnown(t *testing.T) {
	keys := map[string]any{}
	for _, row := range table {
		vars, _ := row.env.variables(strings.NewReplacer())
		for name := range vars {
			keys[strings.ToLower(strings.TrimPrefix(name, "OTEL_"))] = ""
		}
	}
	if _, unknown, err := NewVariables(keys); err != nil || unknown != nil {
		t.Errorf("got %q, %v", unknown, err)
	}
}
