package otlp

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

func TestTheTargetOfASignal(t *testing.T) {
	type env map[string]string
	for _, tt := range []struct {
		name  string
		env   env // without OTEL_EXPORTER_OTLP_
		want  string
		wrong string // the variable that is
	}{
		{"nothing", nil, "", ""},
		{"blank", env{"ENDPOINT": " ", "TRACES_ENDPOINT": "\t"}, "", ""},
		{"a scheme, any port", env{"ENDPOINT": "http://h:1"}, "http/protobuf http://h:1", ""},
		{"port 4318", env{"ENDPOINT": "https://h:4318/base"}, "http/protobuf https://h:4318/base", ""},
		{"port 4317", env{"ENDPOINT": "https://h:4317"}, "grpc https://h:4317", ""},
		{"port 4317, blanks about it", env{"ENDPOINT": "  http://h:4317\n"}, "grpc http://h:4317 plain", ""},
		{"grpc://", env{"ENDPOINT": "grpc://h:1"}, "grpc http://h:1 plain", ""},
		{"grpc:// with TLS", env{"ENDPOINT": "grpc://h:1", "INSECURE": "false"}, "grpc https://h:1", ""},
		{"host:port", env{"ENDPOINT": "h:4317"}, "grpc https://h:4317", ""},
		{"host:port, plain", env{"ENDPOINT": "127.0.0.1:4317", "INSECURE": "TRUE"}, "grpc http://127.0.0.1:4317 plain", ""},
		{"host:port, plain for traces", env{"ENDPOINT": "[::1]:5", "PROTOCOL": "grpc", "INSECURE": "false", "TRACES_INSECURE": "true"}, "grpc http://[::1]:5 plain", ""},
		{"https:// is never plain", env{"ENDPOINT": "https://h:4317", "INSECURE": "true"}, "grpc https://h:4317", ""},
		{"http:// always is", env{"ENDPOINT": "http://h:4317", "INSECURE": "false"}, "grpc http://h:4317 plain", ""},
		{"a socket", env{"ENDPOINT": "unix:///run/otel.sock", "PROTOCOL": "grpc"}, "grpc unix:///run/otel.sock plain", ""},
		{"of traces first", env{"ENDPOINT": "http://h:1", "TRACES_ENDPOINT": "http://t:2/p"}, "http/protobuf http://t:2/p", ""},
		{"a protocol", env{"ENDPOINT": "http://h:4318", "PROTOCOL": "grpc"}, "grpc http://h:4318 plain", ""},
		{"a protocol of traces first", env{"ENDPOINT": "http://h:4317", "PROTOCOL": "grpc", "TRACES_PROTOCOL": "http/protobuf"}, "http/protobuf http://h:4317", ""},
		{"a password", env{"ENDPOINT": "https://user:secret@h:4317"}, "grpc https://h:4317", ""},

		{"JSON", env{"ENDPOINT": "http://h:4318", "PROTOCOL": "http/json"}, "", "PROTOCOL"},
		{"no protocol", env{"ENDPOINT": "http://h:4318", "TRACES_PROTOCOL": "GRPC"}, "", "TRACES_PROTOCOL"},
		{"host:port by HTTP", env{"ENDPOINT": "h:4318"}, "", "ENDPOINT"},
		{"grpc:// by HTTP", env{"TRACES_ENDPOINT": "grpc://h:1", "PROTOCOL": "http/protobuf"}, "", "TRACES_ENDPOINT"},
		{"a socket by HTTP", env{"ENDPOINT": "unix:///run/otel.sock"}, "", "ENDPOINT"},
		{"a host alone", env{"ENDPOINT": "collector"}, "", "ENDPOINT"},
		{"no host", env{"ENDPOINT": "http://"}, "", "ENDPOINT"},
		{"a port alone", env{"ENDPOINT": "http://:4318"}, "", "ENDPOINT"},
		{"a path", env{"ENDPOINT": "/run/otel.sock"}, "", "ENDPOINT"},
		{"a blank within", env{"ENDPOINT": "http://a b:1"}, "", "ENDPOINT"},
		{"a port that is none", env{"ENDPOINT": "http://user:secret/@a:port"}, "", "ENDPOINT"},
		{"nothing of a URL", env{"ENDPOINT": "://"}, "", "ENDPOINT"},
		{"an escape that is none", env{"ENDPOINT": "http://%zz"}, "", "ENDPOINT"},
		{"another scheme", env{"ENDPOINT": "ftp://h:4317"}, "", "ENDPOINT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(variable("", k), v)
			}
			target, err := newTarget(traces)
			got := ""
			if target != nil {
				got = target.protocol + " " + target.endpoint
				if target.insecure && target.protocol == protocolGRPC {
					got += " plain"
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			var v variableError
			if errors.As(err, &v) != (tt.wrong != "") || v.name != "" && v.name != variable("", tt.wrong) {
				t.Errorf("got %v, want one about %q", err, tt.wrong)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("it says %q", err)
			}
		})
	}
}

func TestTheStartOfAShimIsNotSampledWhereItsParentIsNot(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	const traceID = "0af7651916cd43dd8448eb211c80319c"
	t.Setenv(telemetry.TraceContextEnv, "00-"+traceID+"-b7ad6b7169203331-00") // nothing to flush
	t.Setenv("OTEL_METRICS_EXPORTER", "none")
	provider, shutdown := Setup(Shim{ID: "default/c1"}, nil, func(err error) { t.Error(err) })
	sc := trace.SpanContextFromContext(telemetry.StartShim(context.Background(), provider, telemetry.Boot{Began: time.Now(), Answered: time.Now(), Served: time.Now()}))
	if sc.TraceID().String() != traceID || sc.IsSampled() {
		t.Errorf("got %v, want one of %s, not sampled", sc, traceID)
	}
	if err := shutdown(t.Context()); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// OTLP is protobuf, whose texts are UTF-8: of a batch with any other nothing is sent.
func TestAnErrorThatIsNoTextCostsNoSpan(t *testing.T) {
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"+c.Addr())
	provider, flush := Setup(Shim{ID: "ns/id"}, nil, func(err error) { t.Error(err) })
	for _, err := range []error{nil, errors.New("hook: \xff\xfe"), errors.New(strings.Repeat("é", 1<<20))} {
		_, span := telemetry.StartOperation(t.Context(), provider, telemetry.TaskCreate)
		telemetry.End(span, err)
	}
	if err := flush(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := len(c.Spans()), 3; got != want {
		t.Errorf("got %d spans, want %d", got, want)
	}
}
