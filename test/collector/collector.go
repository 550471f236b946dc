// Package collector is a receiver of OTLP over gRPC and HTTP that keeps what it is
// sent in memory, for the tests and the demo.
package collector

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // is understood
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// Life are the spans of the life of a container that runs to its end.
var Life = []string{
	"shim.start", "shim.listen", "shim.serve",
	"task.create", "bundle.load", "rootfs.mount", "bundle.check", "seccomp.compile", "stdio.open", "cgroup.create",
	"sandbox.prepare", "instance.spawn", "sandbox.build",
	"instance.prepare", "module.resolve", "module.compile", "module.load", "sandbox.enter",
	"task.wait", "task.start", "module.instantiate", "module.start", "module.run", "task.exit",
	"task.delete", "stdio.close", "rootfs.unmount", "cgroup.destroy",
}

// Miss are those beside, of one whose module had not been compiled before.
var Miss = []string{"compiler.spawn", "module.translate"}

// A Span is a span as it was received.
type Span struct {
	Service   string
	Resource  map[string]string
	Name      string
	Kind      tracepb.Span_SpanKind
	TraceID   string // hexadecimal
	ID        string
	Parent    string // empty for a root
	State     string // the W3C's trace state
	Start     time.Time
	End       time.Time
	Attrs     map[string]string
	Events    []Event
	Failed    bool
	Status    string // the description of a failure
	Links     []string
	LinkTrace []string
	LinkAttrs []map[string]string
}

// An Event is one of a span.
type Event struct {
	Name  string
	At    time.Time
	Attrs map[string]string
}

// A Request is one that brought spans or metrics.
type Request struct {
	Protocol string // grpc or http/protobuf
	Path     string
	Header   http.Header // with the metadata of gRPC
	Client   string      // whom the client's certificate is for
	Spans    int
	Metrics  int
}

// A Collector is a running receiver. Both protocols are served at one address.
type Collector struct {
	server     *http.Server
	grpc       *grpc.Server
	listener   net.Listener
	tracesOnly bool
	done       chan struct{}

	mu       sync.Mutex
	spans    []Span          // guarded by mu
	metrics  []Metric        // guarded by mu
	requests []Request       // guarded by mu
	keep     bool            // guarded by mu
	kept     []proto.Message // guarded by mu
}

// Start starts a receiver on a loopback port.
func Start() (*Collector, error) { return StartTLS(nil) }

// StartTLS starts a receiver on a loopback port that speaks TLS, if config is not
// nil.
func StartTLS(config *tls.Config) (*Collector, error) {
	return Listen("127.0.0.1:0", config)
}

// Listen starts a receiver at an address: one that was there before, for example.
func Listen(address string, config *tls.Config) (*Collector, error) {
	return listen(address, config, false)
}

// StartTraces starts a receiver on a loopback port that has no service for metrics,
// as Jaeger has none.
func StartTraces() (*Collector, error) { return listen("127.0.0.1:0", nil, true) }

func listen(address string, config *tls.Config, tracesOnly bool) (*Collector, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &Collector{grpc: grpc.NewServer(), listener: l, tracesOnly: tracesOnly, done: make(chan struct{})}
	collectorpb.RegisterTraceServiceServer(c.grpc, traceService{c: c})
	if !tracesOnly {
		metricscollectorpb.RegisterMetricsServiceServer(c.grpc, metricsService{c: c})
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	c.server = &http.Server{Handler: http.HandlerFunc(c.serve), Protocols: &protocols, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		defer close(c.done)
		if config != nil {
			_ = c.server.ServeTLS(l, "", "") // ends when Close stops it
			return
		}
		_ = c.server.Serve(l) // as above
	}()
	return c, nil
}

// Close stops the receiver.
func (c *Collector) Close() {
	_ = c.server.Close() // the connections are gone in any case
	c.grpc.Stop()
	<-c.done
}

// Addr is where it listens, host:port.
func (c *Collector) Addr() string { return c.listener.Addr().String() }

func (c *Collector) serve(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		c.grpc.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, newRequest("grpc", r))))
		return
	}
	if c.tracesOnly && strings.Contains(r.URL.Path, "metrics") {
		http.NotFound(w, r)
		return
	}
	answer, err := c.post(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(answer) // to one that may have left
}

const contentType = "application/x-protobuf"

// post takes what comes by HTTP, at any path: metrics where that says so.
func (c *Collector) post(r *http.Request) ([]byte, error) {
	if got := r.Header.Get("Content-Type"); r.Method != http.MethodPost || got != contentType {
		return nil, fmt.Errorf("%s of %q, not POST of %q", r.Method, got, contentType)
	}
	body := io.Reader(r.Body)
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, err
		}
		body = z
	default:
		return nil, fmt.Errorf("unknown encoding %q", encoding)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	request := newRequest("http/protobuf", r)
	if strings.Contains(r.URL.Path, "metrics") {
		var m metricscollectorpb.ExportMetricsServiceRequest
		if err := proto.Unmarshal(data, &m); err != nil {
			return nil, err
		}
		c.takeMetrics(request, &m)
		return proto.Marshal(&metricscollectorpb.ExportMetricsServiceResponse{})
	}
	var t collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(data, &t); err != nil {
		return nil, err
	}
	c.takeSpans(request, &t)
	return proto.Marshal(&collectorpb.ExportTraceServiceResponse{})
}

func newRequest(protocol string, r *http.Request) Request {
	out := Request{Protocol: protocol, Path: r.URL.Path, Header: r.Header}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		out.Client = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	return out
}

// requestKey is where the context of a call has its request.
type requestKey struct{}

func ofGRPC(ctx context.Context) Request {
	r, _ := ctx.Value(requestKey{}).(Request)
	return r
}

type traceService struct {
	collectorpb.UnimplementedTraceServiceServer
	c *Collector
}

// Export implements the OTLP trace service.
func (s traceService) Export(ctx context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	s.c.takeSpans(ofGRPC(ctx), r)
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func (c *Collector) takeSpans(request Request, r *collectorpb.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keep {
		c.kept = append(c.kept, r)
	}
	for _, rs := range r.ResourceSpans {
		resource := attributes(rs.Resource.GetAttributes())
		for _, ss := range rs.ScopeSpans {
			request.Spans += len(ss.Spans)
			for _, s := range ss.Spans {
				c.spans = append(c.spans, span(resource, s))
			}
		}
	}
	c.requests = append(c.requests, request)
}

func span(resource map[string]string, s *tracepb.Span) Span {
	out := Span{
		Service: resource["service.name"], Resource: resource, Name: s.Name, Kind: s.Kind,
		TraceID: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
		State: s.TraceState,
		Start: time.Unix(0, int64(s.StartTimeUnixNano)), End: time.Unix(0, int64(s.EndTimeUnixNano)),
		Attrs:  attributes(s.Attributes),
		Failed: s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR, Status: s.Status.GetMessage(),
	}
	for _, e := range s.Events {
		out.Events = append(out.Events, Event{Name: e.Name, At: time.Unix(0, int64(e.TimeUnixNano)), Attrs: attributes(e.Attributes)})
	}
	for _, l := range s.Links {
		out.Links = append(out.Links, hex.EncodeToString(l.SpanId))
		out.LinkTrace = append(out.LinkTrace, hex.EncodeToString(l.TraceId))
		out.LinkAttrs = append(out.LinkAttrs, attributes(l.Attributes))
	}
	return out
}

func attributes(kvs []*commonpb.KeyValue) map[string]string {
	m := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		m[kv.Key] = text(kv.Value)
	}
	return m
}

// text is a value; of a list, the values with commas between them.
func text(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_IntValue:
		return fmt.Sprint(v.IntValue)
	case *commonpb.AnyValue_BoolValue:
		return fmt.Sprint(v.BoolValue)
	case *commonpb.AnyValue_ArrayValue:
		var values []string
		for _, v := range v.ArrayValue.Values {
			values = append(values, text(v))
		}
		return strings.Join(values, ",")
	}
	return v.String()
}

// Keep has the collector keep what it receives from now on as it is, for [Collector.Text].
func (c *Collector) Keep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep = true
}

// Text is all that was kept, everything that was in it.
func (c *Collector) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, m := range c.kept {
		b.WriteString(prototext.Format(m))
	}
	return b.String()
}

// Spans are all spans received so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Requests are all requests received so far.
func (c *Collector) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Find waits until a span of the given name has come for the container, and
// returns it.
func (c *Collector) Find(ctx context.Context, name, container string) (Span, error) {
	for {
		for _, s := range c.Spans() {
			if s.Name == name && s.Attrs["container.id"] == container {
				return s, nil
			}
		}
		select {
		case <-ctx.Done():
			return Span{}, fmt.Errorf("no span %s of %s has come: %w", name, container, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Trace are the spans of one trace, in the order they began.
func (c *Collector) Trace(id string) []Span {
	var spans []Span
	for _, s := range c.Spans() {
		if s.TraceID == id {
			spans = append(spans, s)
		}
	}
	slices.SortStableFunc(spans, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return spans
}
