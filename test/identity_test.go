package test

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// spansOf waits until the named spans of a container have come, in whatever trace,
// and returns all that it has.
func spansOf(t *testing.T, c *collector.Collector, id string, want ...string) (found []collector.Span) {
	t.Helper()
	eventually(t, fmt.Sprintf("spans %v of %s", want, id), func() bool {
		found = nil
		missing := slices.Clone(want)
		for _, s := range c.Spans() {
			if s.Attrs["container.id"] == id {
				found = append(found, s)
				missing = slices.DeleteFunc(missing, func(name string) bool { return name == s.Name })
			}
		}
		return len(missing) == 0
	})
	return found
}

// What CRI says of a container is on every span of its, whatever it runs.
func TestTheSpansOfAPodSayWhoseTheyAre(t *testing.T) {
	p := runPod(t)
	module := p.run(probeImage, idleModule)
	linux := p.run(busyboxImage, idleLinux)
	if resp, err := p.exec(module, "/app.wasm", "print", "x"); err != nil || resp.ExitCode != 0 {
		t.Fatalf("exec: %v, %v", resp, err)
	}
	for _, id := range []string{module, linux} {
		p.stop(id, 0)
		p.removeContainer(id)
	}
	pod, instance := p.id, "k8s.io/"+p.id
	p.remove()
	pods := map[string]string{
		"containerd.namespace": "k8s.io", "containerd.sandbox.id": pod,
		"k8s.namespace.name": "default", "k8s.pod.name": p.config.Metadata.Name, "k8s.pod.uid": p.config.Metadata.Uid,
		"container.runtime.name": "containerd", "container.runtime.description": node.Runtime,
	}
	for id, c := range map[string]struct{ name, image string }{
		pod: {"", node.PauseImage}, module: {"c0", probeImage}, linux: {"c1", busyboxImage},
	} {
		want := maps.Clone(pods)
		image, tag, _ := cutLast(c.image, ":")
		want["container.image.name"], want["container.image.tags"] = image, tag
		want["k8s.container.name"], want["container.name"] = c.name, c.name
		names := []string{"task.create", "task.start", "task.wait", "task.kill", "task.delete"}
		if id == module {
			names = append(names, "rootfs.mount", "instance.spawn", "module.load", "module.run", "cgroup.destroy", "task.exec")
		}
		for _, s := range spansOf(t, spans, id, names...) {
			if s.Resource["service.name"] != "containerd-shim-wazero" || s.Resource["service.instance.id"] != instance {
				t.Errorf("%s: resource %v, want the instance %s", s.Name, s.Resource, instance)
			}
			if s.Name == "bundle.load" {
				continue // which reads it
			}
			for k, v := range want {
				if s.Attrs[k] != v {
					t.Errorf("%s of %s: %s is %q, want %q", s.Name, c.image, k, s.Attrs[k], v)
				}
			}
		}
	}
}

func TestASpanSaysWhichCallItIs(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	b.mustStart(t)
	b.exit(t)
	ctx := namespaces.WithNamespace(t.Context(), node.Namespace)
	kill := &taskapi.KillRequest{ID: b.ID(), Signal: 9}
	_, err := shimClient(t, n, b.ID()).Kill(ctx, kill)
	wantError(t, errgrpc.ToNative(err), errdefs.ErrNotFound)
	// As containerd 1.7 asks.
	conn, err := net.Dial("unix", shimAddress(t, n, b.ID()))
	if err != nil {
		t.Fatal(err)
	}
	old := ttrpc.NewClient(conn)
	defer old.Close()
	err = old.Call(ctx, "containerd.task.v2.Task", "Kill", kill, &ptypes.Empty{})
	wantError(t, errgrpc.ToNative(err), errdefs.ErrNotFound)
	b.delete(t)
	var kills []string
	for _, s := range spansOf(t, spans, b.ID(), "task.create", "task.start", "task.wait", "task.kill", "task.delete") {
		name, ok := strings.CutPrefix(s.Name, "task.")
		if !ok || s.Kind != tracepb.Span_SPAN_KIND_SERVER {
			continue
		}
		method := s.Attrs["rpc.method"]
		_, called, _ := cutLast(method, "/")
		status := "OK"
		if name == "kill" {
			kills = append(kills, method)
			status = "NOT_FOUND"
			if s.Attrs["error.type"] != status {
				t.Errorf("%s: error.type %q", s.Name, s.Attrs["error.type"])
			}
		} else if method != "containerd.task.v3.Task/"+called || s.Attrs["error.type"] != "" {
			t.Errorf("%s: rpc.method %q, error.type %q", s.Name, method, s.Attrs["error.type"])
		}
		if !strings.EqualFold(called, name) || s.Attrs["rpc.system.name"] != "ttrpc" || s.Attrs["rpc.response.status_code"] != status || s.Failed != (status != "OK") {
			t.Errorf("%s: failed %t, %v", s.Name, s.Failed, s.Attrs)
		}
	}
	if want := []string{"containerd.task.v2.Task/Kill", "containerd.task.v3.Task/Kill"}; !slices.Equal(slices.Sorted(slices.Values(kills)), want) {
		t.Errorf("kills %v, want %v", kills, want)
	}
}

// secret is a text that is to be nowhere but in the container.
func secret(where string) string { return "secret-of-" + where + "-" + rand.Text() }

func TestNoSecretLeavesTheContainer(t *testing.T) {
	n, c := tracedNode(t, options(), "OTEL_EXPORTER_OTLP_HEADERS=authorization="+secret("header")+","+secret("malformed"))
	c.Keep()
	environment := oci.WithEnv([]string{secret("name") + "=1", "A=" + secret("env"), "PATH=/" + secret("path")})
	annotations := oci.WithAnnotations(map[string]string{secret("key"): "x", "org.example.note": secret("annotation"), "io.kubernetes.cri.pod-annotations": secret("pod")})
	with := func(opts ...oci.SpecOpts) []oci.SpecOpts { return append(opts, environment, annotations) }
	arg := secret("arg")
	probe := app(t, n, "probe.wasm")

	b, status := run(t, n, probe, with(args("/app.wasm", "print", arg))...)
	if status != 0 || b.stdout.String() != arg+"\n" {
		t.Fatalf("exit status %d, %q", status, b.stdout)
	}
	run(t, n, app(t, n, "trap.wasm"), with(args("/app.wasm", arg))...)
	l, status := run(t, n, image(t, n, "linux", node.Program("hello", guest(t, "hello-static"))), with(args("/hello", arg))...)
	if status != 0 {
		t.Errorf("the Linux program ended with %d", status)
	}
	hook := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 1", secret("hook")}, Env: []string{"A=" + secret("hook")}}
	broken := map[string]oci.SpecOpts{
		"not on the PATH":          args("app.wasm", arg),
		"no such file":             args("/none", arg),
		"a Linux program's script": args("/etc/none", arg),
		"a NUL in an argument":     args("/app.wasm", arg+"\x00"),
		"a NUL in the environment": oci.Compose(args("/app.wasm"), specOf(func(s *oci.Spec) { s.Process.Env = append(s.Process.Env, "B="+secret("env")+"\x00") })),
		"a hook that fails":        oci.Compose(args("/app.wasm"), specOf(func(s *oci.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook}} })),
		"a hook after the end": oci.Compose(args("/none"), specOf(func(s *oci.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}, Poststop: []specs.Hook{hook}}
		})),
	}
	ids := []string{b.ID(), l.ID()}
	for name, opt := range broken {
		f := containerWith(t, n, probe, &runtimeoptions.Options{ConfigBody: []byte("Unknown = '" + secret("option") + "'")}, with(opt)...)
		err := f.create()
		if err == nil {
			t.Errorf("%s: created", name)
		} else if strings.Contains(err.Error(), "secret-of-") {
			t.Errorf("%s: %v", name, err)
		}
		ids = append(ids, f.ID())
	}
	i := container(t, n, probe, with(args("/app.wasm", "idle", arg))...)
	i.mustCreate(t)
	i.mustStart(t)
	for _, cmd := range [][]string{{"/app.wasm", "print", arg}, {"none", arg}} {
		spec := &specs.Process{Args: cmd, Cwd: "/", Env: []string{"A=" + secret("exec")}}
		e, err := i.task.Exec(i.ctx, newID(t), spec, cio.NullIO)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Start(i.ctx); err == nil {
			exited, err := e.Wait(i.ctx)
			if err != nil {
				t.Fatal(err)
			}
			<-exited
		} else if strings.Contains(err.Error(), "secret-of-") {
			t.Error(err)
		}
		if _, err := e.Delete(i.ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := i.task.Delete(i.ctx, containerd.WithProcessKill); err != nil {
		t.Error(err)
	}
	spansOf(t, c, i.ID(), "task.create", "task.kill", "task.exec", "module.run", "task.delete")
	for _, id := range ids {
		spansOf(t, c, id, "task.create")
	}
	for what, text := range map[string]string{"a collector": c.Text(), "the log": n.Log()} {
		if found := regexp.MustCompile(`.*secret-of-.*`).FindAllString(text, 10); len(found) > 0 || text == "" {
			t.Errorf("%s is told, of %d bytes:\n%s", what, len(text), strings.Join(found, "\n"))
		}
	}
}

// logFields are those of the line of containerd's log that has all the given parts,
// unquoted.
func logFields(t *testing.T, n *node.Node, parts ...string) (fields map[string]string) {
	t.Helper()
	field := regexp.MustCompile(`([^\s=]+)=("(?:\\.|[^"])*"|\S*)`)
	eventually(t, fmt.Sprintf("a line of the log with %q", parts), func() bool {
		for line := range strings.Lines(n.Log()) {
			if slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
				continue
			}
			fields = map[string]string{}
			for _, m := range field.FindAllStringSubmatch(line, -1) {
				fields[m[1]] = strings.Trim(m[2], `"`)
			}
			return true
		}
		return false
	})
	return fields
}

// The lines of the log about a container, and the operation each is of: in a call, of
// another trace too, after one, and in what containerd's service for runc is called by.
func TestALineOfTheLogNamesTheContainerAndItsSpan(t *testing.T) {
	const unsampled = "4bf92f3577b34da6a3ce929d0e0e4736"
	unknown := &runtimeoptions.Options{ConfigBody: []byte("NoSuchKey = 1")}
	pod := map[string]string{"k8s.namespace.name": "default", "k8s.pod.name": "web-0", "k8s.container.name": "app"}
	annotations := oci.WithAnnotations(map[string]string{
		"io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-name": "web-0", "io.kubernetes.cri.container-name": "app",
	})
	hook := oci.Compose(annotations, specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}, Poststop: []specs.Hook{{Path: "/bin/false"}}}
	}))
	check := func(t *testing.T, got map[string]string, id, trace, span string) {
		t.Helper()
		want := map[string]string{"id": id, "trace_id": trace, "span_id": span}
		maps.Copy(want, pod)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s is %q, want %q: %v", k, got[k], v, got)
			}
		}
	}
	traced := func(t *testing.T, n *node.Node, c *collector.Collector) {
		b := containerWith(t, n, app(t, n, "probe.wasm"), unknown, args("/app.wasm"), hook)
		b.mustCreate(t)
		// Nobody can write the exit there.
		if err := os.Mkdir(filepath.Join(n.Bundle(b.ID()), "exit.json"), 0o700); err != nil {
			t.Fatal(err)
		}
		b.mustStart(t)
		b.exit(t)
		b.delete(t)
		life := trace(t, c, b.ID(), "task.create", "task.delete")
		create := life["task.create"]
		check(t, logFields(t, n, "NoSuchKey", b.ID()), b.ID(), create.TraceID, create.ID)
		check(t, logFields(t, n, "record exit", b.ID()), b.ID(), create.TraceID, create.ID)
		check(t, logFields(t, n, "poststop hook", b.ID()), b.ID(), create.TraceID, life["task.delete"].ID)
		l := containerWith(t, n, image(t, n, "linux", node.Program("hello", guest(t, "hello-static"))), unknown, args("/hello"), annotations)
		l.mustCreate(t)
		create = trace(t, c, l.ID(), "task.create")["task.create"]
		check(t, logFields(t, n, "NoSuchKey", l.ID()), l.ID(), create.TraceID, create.ID)
	}
	t.Run("containerd is traced", func(t *testing.T) {
		n := useNode(t)
		traced(t, n, spans)
	})
	t.Run("containerd is not traced", func(t *testing.T) {
		n, c := tracedNode(t, options())
		traced(t, n, c)
	})
	t.Run("unsampled", func(t *testing.T) {
		n, c := tracedNode(t, options(), "TRACECONTEXT=00-"+unsampled+"-00f067aa0ba902b7-00")
		b := containerWith(t, n, app(t, n, "hello.wasm"), unknown, args("/app.wasm"), hook)
		b.mustCreate(t)
		got := logFields(t, n, "NoSuchKey", b.ID())
		check(t, got, b.ID(), unsampled, got["span_id"])
		if len(got["span_id"]) != 16 {
			t.Errorf("span_id %q", got["span_id"])
		}
		if got := c.Spans(); len(got) > 0 {
			t.Errorf("spans all the same:\n%s", collector.Tree(got))
		}
	})
	t.Run("no telemetry", func(t *testing.T) {
		n := newNode(t, options())
		b := containerWith(t, n, app(t, n, "hello.wasm"), unknown, args("/app.wasm"), hook)
		b.mustCreate(t)
		b.mustStart(t)
		b.exit(t)
		b.delete(t)
		for _, part := range []string{"NoSuchKey", "poststop hook"} {
			check(t, logFields(t, n, part, b.ID()), b.ID(), "", "")
		}
	})
}
