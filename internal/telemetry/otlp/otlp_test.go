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

func TestAnEndpointIsAURLWithAHost(t *testing.T) {
	for _, tt := range []struct {
		endpoint string
		good     bool
	}{
		{"http://127.0.0.1:1", true},
		{"https://127.0.0.1:1", true},
		{"grpc://127.0.0.1:1", true},
		{"  http://127.0.0.1:1\n", true},
		{"http://[::1]:1", true},
		{"127.0.0.1:4317", false},
		{"localhost:4317", false},
		{"collector", false},
		{"http://", false},
		{"/run/otel.sock", false},
		{"http://a b:1", false},
		{"http://a:port", false},
		{"://", false},
		{"http://%zz", false},
	} {
		t.Run(tt.endpoint, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", tt.endpoint)
			provider, shutdown, err := Setup(t.Context(), "ns/id", func(error) {})
			if (err == nil) != tt.good {
				t.Fatalf("got %v, want good: %v", err, tt.good)
			}
			if err != nil {
				return
			}
			if provider == nil {
				t.Error("got no provider")
			}
			if err := shutdown(t.Context()); err != nil { // there are no spans to flush
				t.Errorf("shutdown: %v", err)
			}
		})
	}
}

func TestTheServiceIsTheShimUnlessItIsNamed(t *testing.T) {
	for _, tt := range []struct{ env, want string }{
		{"", ServiceName},
		{"containerd", ServiceName}, // the name of the one that started it
		{"containerd-edge", "containerd-edge"},
		{"mine", "mine"},
	} {
		t.Setenv("OTEL_SERVICE_NAME", tt.env)
		if got := serviceName(); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestTheProviderGivesAShimTheIdentityThatWasGivenAway(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	t.Setenv("WAZERO_SHIM_START", `{"began":1,"parent":"00-`+traceID+`-1111111111111111-00"}`)
	t.Setenv(telemetry.TraceContextEnv, "00-"+traceID+"-"+spanID+"-00") // not sampled: nothing to flush
	provider, shutdown, err := Setup(t.Context(), "default/c1", func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	sc := trace.SpanContextFromContext(telemetry.StartShim(context.Background(), provider, time.Now()))
	if sc.TraceID().String() != traceID || sc.SpanID().String() != spanID || sc.IsSampled() {
		t.Errorf("got %v, want %s of %s, not sampled", sc, spanID, traceID)
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
	provider, flush, err := Setup(t.Context(), "ns/id", func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
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
