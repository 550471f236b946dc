package test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"google.golang.org/grpc"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/jaeger"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// Jaeger is not what `make test` builds. jaegerEnv says that it must be there all
// the same, and traceEnv names the file that the trace goes to of which docs has a
// picture.
const (
	jaegerEnv = "TEST_JAEGER"
	traceEnv  = "TEST_JAEGER_TRACE"
)

// useJaeger is a Jaeger of the test's own.
func useJaeger(t *testing.T) *jaeger.Jaeger {
	t.Helper()
	need(t)
	path := filepath.Join(bin(), "jaeger")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && os.Getenv(jaegerEnv) == "" {
		t.Skip("needs what `make test-jaeger` builds")
	}
	j, err := jaeger.Start(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// tracedClient has the node's client trace its calls of containerd's tasks, and
// send that to Jaeger as the service "client". What is done with the context that
// begin returns is below one span, which end ends.
func tracedClient(t *testing.T, n *node.Node, j *jaeger.Jaeger) (begin func() (_ context.Context, end func())) {
	t.Helper()
	exporter, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithEndpoint(j.GRPC), otlptracegrpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(resource.NewSchemaless(semconv.ServiceName("client"))))
	handler := otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(filters.ServiceName("containerd.services.tasks.v1.Tasks")))
	client, err := containerd.New(n.Address(), containerd.WithDefaultNamespace(n.Namespace()),
		containerd.WithExtraDialOpts([]grpc.DialOption{grpc.WithStatsHandler(handler)}))
	if err != nil {
		t.Fatal(err)
	}
	plain := n.Client
	n.Client = client
	t.Cleanup(func() {
		n.Client = plain
		if err := errors.Join(client.Close(), provider.Shutdown(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return func() (context.Context, func()) {
		ctx, span := provider.Tracer("test").Start(n.Context(t.Context()), "run")
		return ctx, func() {
			span.End()
			if err := provider.ForceFlush(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// A stored trace is what Jaeger answers with.
type stored struct {
	json   json.RawMessage
	spans  []collector.Span
	byName map[string]collector.Span // those of the shim that are no exec's
}

func read(t *testing.T, data json.RawMessage) stored {
	t.Helper()
	all, err := jaeger.Spans(data)
	if err != nil {
		t.Fatal(err)
	}
	s := stored{json: data, spans: all, byName: map[string]collector.Span{}}
	for _, span := range all {
		if span.Service == "containerd-shim-wazero" && span.Attrs["containerd.exec.id"] == "" {
			s.byName[span.Name] = span
		}
	}
	return s
}

// find is the span of a service with the given name.
func (s stored) find(service, name string) (found collector.Span) {
	for _, span := range s.spans {
		if span.Service == service && span.Name == name {
			found = span
		}
	}
	return found
}

// ask waits until Jaeger finds a container's trace, by the attributes of its
// task.create, and the trace has all that is asked for.
func ask(t *testing.T, j *jaeger.Jaeger, id string, whole func(stored) bool) (s stored) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		traces, err := j.Find(ctx, "containerd-shim-wazero", map[string]string{"container.id": id, "containerd.namespace": node.Namespace})
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range traces {
			if s = read(t, data); s.byName["task.create"].Attrs["container.id"] == id && len(collector.Orphans(s.spans)) == 0 && whole(s) {
				return s
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("Jaeger has %d traces of %s, none whole, such as one with the parents of %q missing:\n%s", len(traces), id, collector.Orphans(s.spans), collector.Tree(s.spans))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// has asks for spans of the shim by their names, and for the client's.
func has(names ...string) func(stored) bool {
	return func(s stored) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return s.byName[name].ID == "" }) && s.find("client", "run").ID != ""
	}
}

// What an operator sees: every life of a container is one trace in Jaeger, from the
// client's call to the guest's exit code.
func TestJaegerHasTheWholeLifeOfAContainer(t *testing.T) {
	for protocol, endpoint := range map[string]func(*jaeger.Jaeger) string{
		"grpc":          func(j *jaeger.Jaeger) string { return j.GRPC },
		"http/protobuf": func(j *jaeger.Jaeger) string { return j.HTTP },
	} {
		t.Run(protocol, func(t *testing.T) {
			j := useJaeger(t)
			n := newNode(t, options("OTEL_EXPORTER_OTLP_ENDPOINT=http://"+endpoint(j), "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol, "OTEL_BSP_SCHEDULE_DELAY=200"))
			img := app(t, n, "probe.wasm")
			begin := tracedClient(t, n, j)
			for _, run := range []string{"cold", "warm"} {
				b := container(t, n, img, args("/app.wasm", "sleep", "20ms", "exit", "3"))
				var end func()
				b.ctx, end = begin()
				if status := b.live(t); status != 3 {
					t.Fatalf("exit status %d", status)
				}
				end()
				s := ask(t, j, b.ID(), has(collector.Life...))
				checkLife(t, s, b, run == "cold")
				if name := os.Getenv(traceEnv); name != "" && protocol == "grpc" && run == "warm" {
					if err := os.WriteFile(name, s.json, 0o644); err != nil {
						t.Error(err)
					}
				}
			}
			services, err := j.Services(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"client", "containerd", "containerd-shim-wazero"} {
				if !slices.Contains(services, want) {
					t.Errorf("Jaeger knows the services %q, want %s", services, want)
				}
			}
			for _, name := range services {
				if strings.Contains(name, "shim") && name != "containerd-shim-wazero" {
					t.Errorf("a shim is a service of its own: %s", name)
				}
			}
		})
	}
}

// checkLife checks the trace of a container that a traced client has run, and that
// has ended with 3.
func checkLife(t *testing.T, s stored, b *box, cold bool) {
	t.Helper()
	checkTree(t, s.byName, b.ID())
	client := s.find("client", "run")
	for _, span := range s.spans {
		if span.TraceID != client.TraceID {
			t.Errorf("%s is in trace %s, want %s", span.Name, span.TraceID, client.TraceID)
		}
		if up := collector.Above(s.spans, span); span.ID != client.ID && (len(up) == 0 || up[len(up)-1] != "client run") {
			t.Errorf("%s %s is below %q, want the client's span at the top", span.Service, span.Name, up)
		}
	}
	for name, calls := range map[string][2]string{
		"task.create": {"Create", "container.NewTask"}, "task.start": {"Start", "client.task.Start"},
		"task.wait": {"Wait", "task.Wait"}, "task.delete": {"Delete", "client.task.Delete"},
	} {
		call := "containerd.services.tasks.v1.Tasks/" + calls[0]
		want := []string{"containerd containerd.task.v3.Task/" + calls[0], "containerd " + call, "client " + call, "client " + calls[1], "client run"}
		if up := collector.Above(s.spans, s.byName[name]); !slices.Equal(up, want) {
			t.Errorf("%s is below %q, want %q", name, up, want)
		}
	}
	for _, name := range []string{"module.run", "task.wait", "task.delete"} {
		if code := s.byName[name].Attrs["process.exit.code"]; code != "3" {
			t.Errorf("%s has the exit code %q", name, code)
		}
	}
	if hit := s.byName["module.compile"].Attrs["wasm.cache.hit"]; hit != strconv.FormatBool(!cold) {
		t.Errorf("wasm.cache.hit is %q, cold %t", hit, cold)
	}
	if id := s.byName["task.create"].Resource["service.instance.id"]; id != node.Namespace+"/"+b.ID() {
		t.Errorf("service.instance.id is %q", id)
	}
}

func TestJaegerMarksATrap(t *testing.T) {
	j := useJaeger(t)
	n := newNode(t, options(sendTo(j.GRPC)...))
	begin := tracedClient(t, n, j)
	b := container(t, n, app(t, n, "trap.wasm"), args("/app.wasm"))
	var end func()
	b.ctx, end = begin()
	if status := b.live(t); status != 134 {
		t.Errorf("exit status %d", status)
	}
	end()
	s := ask(t, j, b.ID(), has(collector.Life...))
	for _, span := range s.spans {
		if run := span.Name == "module.run"; span.Failed != run {
			t.Errorf("%s: failed %t, %q", span.Name, span.Failed, span.Status)
		}
	}
	if run := s.byName["module.run"]; !strings.Contains(run.Status, "unreachable") || run.Attrs["process.exit.code"] != "134" {
		t.Errorf("module.run: %q, %v", run.Status, run.Attrs)
	}
	found, err := j.Find(t.Context(), "containerd-shim-wazero", map[string]string{"process.exit.code": "134"})
	if err != nil || len(found) != 1 || read(t, found[0]).byName["module.run"].ID != s.byName["module.run"].ID {
		t.Errorf("%d traces with the exit code 134, %v", len(found), err)
	}
}

func TestJaegerHasExecsAndLinuxContainers(t *testing.T) {
	j := useJaeger(t)
	n := newNode(t, options(sendTo(j.GRPC)...))
	b := idle(t, n)
	b.runExec(t, "traced", nil, "/hello.wasm")
	execs := func(s stored) map[string]collector.Span {
		spans := map[string]collector.Span{}
		for _, span := range s.spans {
			if span.Attrs["containerd.exec.id"] == "traced" {
				spans[span.Name] = span
			}
		}
		return spans
	}
	s := ask(t, j, b.ID(), func(s stored) bool { e := execs(s); return e["task.exec"].ID != "" && e["task.delete"].ID != "" })
	for _, name := range []string{"task.exec", "task.start", "task.wait", "task.delete"} {
		if span := execs(s)[name]; span.Failed || span.Attrs["container.id"] != b.ID() || span.Service != "containerd-shim-wazero" {
			t.Errorf("%s of the exec: %+v", name, span)
		}
	}
	if code := execs(s)["task.wait"].Attrs["process.exit.code"]; code != "0" {
		t.Errorf("the exec's exit code is %q", code)
	}

	l, status := run(t, n, image(t, n, "linux", node.Program("hello", guest(t, "hello-static"))), args("/hello"))
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
	s = ask(t, j, l.ID(), func(s stored) bool { return s.byName["task.delete"].ID != "" && s.byName["task.wait"].ID != "" })
	for _, name := range []string{"task.create", "task.start", "task.wait", "task.delete"} {
		if span := s.byName[name]; span.ID == "" || span.Failed || span.Attrs["container.id"] != l.ID() {
			t.Errorf("%s of the Linux container: %+v", name, span)
		}
	}
	if code := s.byName["task.wait"].Attrs["process.exit.code"]; code != "0" {
		t.Errorf("the Linux container's exit code is %q", code)
	}
}

// The collector that docs/telemetry.md sets up hands on what it gets.
func TestJaegerHasWhatTheCollectorOfTheDocumentationHandsOn(t *testing.T) {
	j := useJaeger(t)
	page, err := os.ReadFile("../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```yaml\nreceivers:")
	configuration, _, closed := strings.Cut("receivers:"+rest, "```")
	if !ok || !closed {
		t.Fatal("docs/telemetry.md has no collector's configuration")
	}
	c, err := jaeger.StartCollector(t.Context(), filepath.Join(bin(), "jaeger"), configuration, j.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for scheme, endpoint := range map[string]string{"http/protobuf": c.HTTP, "grpc": c.GRPC} {
		n := newNode(t, options("OTEL_EXPORTER_OTLP_ENDPOINT=http://"+endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL="+scheme, "OTEL_BSP_SCHEDULE_DELAY=200"))
		b, _ := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
		s := ask(t, j, b.ID(), func(s stored) bool {
			return !slices.ContainsFunc(collector.Life, func(name string) bool { return s.byName[name].ID == "" })
		})
		checkTree(t, s.byName, b.ID())
	}
}

// ctr sends no context: its calls are traces of containerd's, linked both ways with
// the container's.
func TestJaegerHasTheLinksBetweenTraces(t *testing.T) {
	j := useJaeger(t)
	n := newNode(t, options(sendTo(j.GRPC)...))
	img := app(t, n, "hello.wasm")
	id := newID(t)
	if out, err := n.Ctr(t.Context(), "run", "--rm", "--runtime="+node.Runtime, img.Name(), id, "/app.wasm").CombinedOutput(); err != nil || string(out) != "hello\n" {
		t.Fatalf("ctr run: %v, %q", err, out)
	}
	s := ask(t, j, id, func(s stored) bool {
		return !slices.ContainsFunc(collector.Life, func(name string) bool { return s.byName[name].ID == "" })
	})
	checkTree(t, s.byName, id)
	if up := collector.Above(s.spans, s.byName["task.create"]); !slices.Equal(up, []string{"containerd containerd.task.v3.Task/Create", "containerd containerd.services.tasks.v1.Tasks/Create"}) {
		t.Errorf("task.create is below %q", up)
	}
	start := s.byName["task.start"]
	i := slices.IndexFunc(start.LinkTrace, func(trace string) bool { return trace != start.TraceID })
	if i < 0 {
		t.Fatalf("task.start is linked to %v of %v, want another trace", start.Links, start.LinkTrace)
	}
	data, err := j.Trace(t.Context(), start.LinkTrace[i])
	if err != nil {
		t.Fatal(err)
	}
	other := read(t, data)
	theirs := other.byName["task.start"]
	if theirs.ID != start.Links[i] || !slices.Contains(theirs.Links, start.ID) || !slices.Contains(theirs.LinkTrace, start.TraceID) {
		t.Errorf("links: %v of %v, and back %v of %v", start.Links, start.LinkTrace, theirs.Links, theirs.LinkTrace)
	}
	if up := collector.Above(other.spans, theirs); !slices.Contains(up, "containerd containerd.services.tasks.v1.Tasks/Start") {
		t.Errorf("the caller's task.start is below %q", up)
	}
}
