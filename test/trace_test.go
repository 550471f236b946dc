package test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// trace waits until a container's trace has the named spans, and returns it.
func trace(t *testing.T, c *collector.Collector, id string, want ...string) map[string]collector.Span {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	create, err := c.Find(ctx, "task.create", id)
	if err != nil {
		t.Fatal(err)
	}
	for {
		byName := map[string]collector.Span{}
		spans := c.Trace(create.TraceID)
		for _, s := range spans {
			byName[s.Name] = s
		}
		missing := slices.DeleteFunc(slices.Clone(want), func(name string) bool { _, ok := byName[name]; return ok })
		if len(missing) == 0 {
			return byName
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the trace has no %v:\n%s", missing, collector.Tree(spans))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// parents of the spans of a container's life; of those not named here it is the
// caller's span or, without one, shim.start.
var parents = map[string]string{
	"shim.listen": "shim.start", "shim.serve": "shim.start",
	"bundle.load": "task.create", "rootfs.mount": "task.create", "bundle.check": "task.create", "seccomp.compile": "bundle.check",
	"stdio.open": "task.create", "logger.start": "stdio.open", "cgroup.create": "task.create", "sandbox.prepare": "task.create",
	"instance.spawn": "task.create", "sandbox.build": "task.create", "sandbox.mount": "sandbox.build",
	"hook.prestart": "sandbox.build", "hook.createRuntime": "sandbox.build", "hook.createContainer": "sandbox.build",
	"instance.prepare": "task.create", "module.resolve": "task.create",
	"module.compile": "task.create", "compiler.wait": "module.compile", "compiler.spawn": "module.compile", "module.translate": "module.compile",
	"module.load": "task.create", "sandbox.enter": "task.create",
	"module.instantiate": "task.start", "module.start": "task.start", "module.run": "task.start", "task.exit": "task.start",
	"hook.poststart": "task.start",
	"stdio.close":    "task.delete", "rootfs.unmount": "task.delete", "cgroup.destroy": "task.delete", "hook.poststop": "task.delete",
	"runc.create": "task.create", "runc.start": "task.start", "runc.delete": "task.delete",
}

// ofWasm are the attributes of a span that are of a module.
func ofWasm(s collector.Span) map[string]string {
	attrs := maps.Clone(s.Attrs)
	maps.DeleteFunc(attrs, func(key, _ string) bool { return !strings.HasPrefix(key, "wasm.") })
	return attrs
}

func digest(file []byte) string {
	sum := sha256.Sum256(file)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func checkTree(t *testing.T, spans map[string]collector.Span, id string) {
	t.Helper()
	for name, s := range spans {
		if parent := parents[name]; parent != "" && s.Parent != spans[parent].ID {
			t.Errorf("%s is below %s, want %s", name, s.Parent, parent)
		}
		if s.Service == "containerd-shim-wazero" && s.End.Before(s.Start) {
			t.Errorf("%s ends before it begins", name)
		}
		if strings.HasPrefix(name, "task.") && (s.Attrs["container.id"] != id || s.Attrs["containerd.namespace"] != node.Namespace || s.Service != "containerd-shim-wazero") {
			t.Errorf("%s of %s: %v", name, s.Service, s.Attrs)
		}
		if s.Failed {
			t.Errorf("%s has failed: %s", name, s.Status)
		}
	}
	for name, to := range map[string]string{"module.run": "module.start", "task.exit": "module.run"} {
		if links := spans[name].Links; len(links) != 1 || links[0] != spans[to].ID {
			t.Errorf("%s is linked to %v, want %s", name, links, to)
		}
	}
	wait, exit := spans["task.wait"], spans["task.exit"]
	if e := wait.Events; len(e) != 1 || e[0].Name != "exit" || !e[0].At.Equal(exit.Start) {
		t.Errorf("task.wait tells of %v, want the exit of %v", e, exit.Start)
	}
}

// tracedNode is a node whose shims are traced, and containerd not.
func tracedNode(t *testing.T, o node.Options, env ...string) (*node.Node, *collector.Collector) {
	t.Helper()
	need(t)
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	o.ShimEnv = append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.Addr(), "OTEL_BSP_SCHEDULE_DELAY=100"}, env...)
	return newNode(t, o), c
}

func TestTheLifeOfAContainerIsOneTrace(t *testing.T) {
	for name, opts := range map[string]func(env ...string) node.Options{
		"containerd is traced": options,
		"containerd is not traced": func(env ...string) node.Options {
			o := options()
			o.ShimEnv = env
			return o
		},
		"containerd is not traced, scheme grpc": func(env ...string) node.Options {
			o := options()
			for _, e := range env {
				o.ShimEnv = append(o.ShimEnv, strings.Replace(e, "http://", "grpc://", 1))
			}
			return o
		},
	} {
		t.Run(name, func(t *testing.T) {
			need(t)
			c, err := collector.Start()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			n := newNode(t, opts("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://"+c.Addr(), "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=200"))
			img := app(t, n, "probe.wasm")
			b, status := run(t, n, img, args("/app.wasm", "exit", "3"))
			if status != 3 {
				t.Fatalf("exit status %d", status)
			}
			spans := trace(t, c, b.ID(), slices.Concat(collector.Life, collector.Miss)...)
			checkTree(t, spans, b.ID())
			traced := name == "containerd is traced"
			for _, op := range []string{"shim.start", "task.create", "task.start", "task.wait", "task.delete"} {
				s := spans[op]
				switch {
				case traced && s.Parent == "":
					t.Errorf("%s is a root: it should be below containerd's span", op)
				case !traced && op == "shim.start" && s.Parent != "":
					t.Errorf("shim.start is below %s, want a root", s.Parent)
				case !traced && op != "shim.start" && s.Parent != spans["shim.start"].ID:
					t.Errorf("%s is below %s, want shim.start", op, s.Parent)
				}
			}
			for _, name := range []string{"task.wait", "task.delete", "module.run", "task.exit"} {
				if got := spans[name].Attrs["process.exit.code"]; got != "3" {
					t.Errorf("%s has the exit code %q", name, got)
				}
			}
			if pid := spans["task.create"].Attrs["process.pid"]; pid != spans["task.start"].Attrs["process.pid"] || pid == "" {
				t.Errorf("pid %q", pid)
			}
			// A second container: a trace of its own, and found compiled.
			again, _ := run(t, n, img, args("/app.wasm", "exit", "3"))
			second := trace(t, c, again.ID(), collector.Life...)
			if second["task.create"].TraceID == spans["task.create"].TraceID {
				t.Error("two containers are in one trace")
			}
			checkTree(t, second, again.ID())
			if _, ok := second["module.translate"]; ok {
				t.Error("the second container's module has been compiled again")
			}
			file := guest(t, "probe.wasm")
			for hit, compile := range map[string]collector.Span{"false": spans["module.compile"], "true": second["module.compile"]} {
				got := ofWasm(compile)
				size, err := strconv.Atoi(got["wasm.compiled.size"])
				want := map[string]string{
					"wasm.cache.hit": hit, "wasm.module.size": strconv.Itoa(len(file)), "wasm.module.digest": digest(file),
					"wasm.compiled.size": got["wasm.compiled.size"],
				}
				if err != nil || size < len(file) || !maps.Equal(got, want) {
					t.Errorf("module.compile: %v, want %v", got, want)
				}
			}
			want := map[string]string{
				"wasm.engine": "compiler", "wasm.module.path": "/app.wasm", "wasm.module.source": "image",
				"wasm.module.size": strconv.Itoa(len(file)), "wasm.module.digest": digest(file),
			}
			if got := ofWasm(second["module.resolve"]); !maps.Equal(got, want) {
				t.Errorf("module.resolve: %v, want %v", got, want)
			}
		})
	}
}

// ctr makes a trace of its own for every call: what is not in the container's gets
// a span there as well, and the two are linked.
func TestACallOfAnotherTraceIsLinked(t *testing.T) {
	n := useNode(t)
	b, _ := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	life := trace(t, spans, b.ID(), collector.Life...)
	start := life["task.start"]
	var theirs collector.Span
	eventually(t, "the span in the caller's trace", func() bool {
		for _, s := range spans.Spans() {
			if s.Name == "task.start" && s.Attrs["container.id"] == b.ID() && s.TraceID != start.TraceID {
				theirs = s
				return true
			}
		}
		return false
	})
	if !slices.Contains(theirs.Links, start.ID) || !slices.Contains(start.Links, theirs.ID) || theirs.Parent == "" {
		t.Errorf("links %v and %v, parent %q", theirs.Links, start.Links, theirs.Parent)
	}
}

func TestAStartThatFailsIsAnErrorInItsTrace(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "nostart.wasm"), args("/app.wasm"))
	if err := b.create(); err == nil {
		t.Fatal("created")
	}
	s := trace(t, spans, b.ID(), "task.create", "module.load", "rootfs.unmount", "cgroup.destroy")
	for _, name := range []string{"task.create", "module.load"} {
		if !s[name].Failed || !strings.Contains(s[name].Status, "_start") || s[name].Attrs["error.type"] == "" {
			t.Errorf("%s: failed %t, %q, %v", name, s[name].Failed, s[name].Status, s[name].Attrs)
		}
	}
	if s["bundle.load"].Failed || s["sandbox.build"].Failed {
		t.Error("stages that went well are errors")
	}
}

func TestAKilledTaskHasAWholeTrace(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	b.mustStart(t)
	// A long run shows before it ends.
	trace(t, spans, b.ID(), "task.create", "task.start", "module.start")
	if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	b.delete(t)
	s := trace(t, spans, b.ID(), append([]string{"task.kill"}, collector.Life...)...)
	if got := s["task.kill"].Attrs["wasm.kill.signal"]; got != "15" || s["task.kill"].Failed {
		t.Errorf("task.kill: signal %q, failed %t", got, s["task.kill"].Failed)
	}
	run := s["module.run"]
	if run.Attrs["process.exit.code"] != "143" || run.Attrs["error.type"] != "SIGTERM" || !run.Failed || !strings.Contains(run.Status, "signal 15") || len(run.Links) != 1 || run.Links[0] != s["module.start"].ID {
		t.Errorf("module.run: %v, failed %t %q, links %v", run.Attrs, run.Failed, run.Status, run.Links)
	}
	if s["task.wait"].Attrs["process.exit.code"] != "143" {
		t.Errorf("task.wait: %v", s["task.wait"].Attrs)
	}
}

func TestATrapIsAnErrorInItsTrace(t *testing.T) {
	n := useNode(t)
	b, _ := run(t, n, app(t, n, "trap.wasm"), args("/app.wasm"))
	s := trace(t, spans, b.ID(), collector.Life...)
	if run := s["module.run"]; !run.Failed || !strings.Contains(run.Status, "unreachable") || run.Attrs["process.exit.code"] != "134" || run.Attrs["error.type"] != "trap" {
		t.Errorf("module.run: failed %t, %q, %v", run.Failed, run.Status, run.Attrs)
	}
	if s["task.wait"].Failed || s["task.delete"].Failed {
		t.Error("waiting for a guest that traps has not failed")
	}
}

// environ is a variable in the environment of a process.
func environ(t *testing.T, pid int, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		t.Fatal(err)
	}
	value := ""
	for _, kv := range strings.Split(string(data), "\x00") {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v
		}
	}
	return value
}

func TestEveryReexecutedProcessGetsTraceContext(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"))
	b.mustCreate(t)
	create := trace(t, spans, b.ID(), "task.create")["task.create"]
	var headers map[string]string
	value := environ(t, int(b.task.Pid()), "TRACECONTEXT")
	if err := json.Unmarshal([]byte(value), &headers); err != nil || len(headers["traceparent"]) != 55 {
		t.Errorf("TRACECONTEXT=%s, %v", value, err)
	}
	if !strings.Contains(headers["traceparent"], create.TraceID) {
		t.Errorf("traceparent %s, want the trace %s", headers["traceparent"], create.TraceID)
	}
}

// TRACECONTEXT in the environment of `start` is the parent of all, else what the
// variables of OpenTelemetry say; and a malformed one is as good as none.
func TestTraceContextOfStart(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	const header = "00-" + id + "-" + parent + "-01"
	for name, c := range map[string]struct {
		value string
		taken bool
		more  []string
	}{
		"a JSON object":             {`{"traceparent":"` + header + `","tracestate":"a=b"}`, true, nil},
		"a bare traceparent":        {header, true, nil},
		"garbage":                   {"no such thing", false, nil},
		"malformed JSON":            {`{"traceparent":`, false, nil},
		"a malformed header":        {`{"traceparent":"00-` + id + `-01"}`, false, nil},
		"a header of zeros":         {"00-00000000000000000000000000000000-0000000000000000-01", false, nil},
		"more than anyone asks":     {strings.Repeat("{", 100_000), false, nil},
		"more baggage than goes on": {`{"traceparent":"` + header + `","baggage":"` + strings.Repeat("k=v,", 3000) + `"}`, true, nil},
		"TRACEPARENT":               {"", true, []string{"TRACEPARENT=" + header, "TRACESTATE=a=b", "BAGGAGE=k=v"}},
		"TRACEPARENT as well":       {header, true, []string{"TRACEPARENT=00-" + id + "-1111111111111111-01"}},
		"a malformed TRACEPARENT":   {"", false, []string{"TRACEPARENT=00-" + id, "TRACESTATE=a=b"}},
	} {
		t.Run(name, func(t *testing.T) {
			n, rec := tracedNode(t, options(), append(c.more, "TRACECONTEXT="+c.value)...)
			b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
			if status != 0 || b.stdout.String() != "hello\n" {
				t.Fatalf("exit status %d, %q", status, b.stdout)
			}
			s := trace(t, rec, b.ID(), collector.Life...)
			shim := s["shim.start"]
			if c.taken && (shim.TraceID != id || shim.Parent != parent) || !c.taken && (shim.TraceID == id || shim.Parent != "") {
				t.Errorf("shim.start is in trace %s below %q", shim.TraceID, shim.Parent)
			}
			if len(c.more) == 3 && (shim.State != "a=b" || s["task.create"].State != "a=b") {
				t.Errorf("trace state %q, then %q", shim.State, s["task.create"].State)
			}
		})
	}
}

// An unsampled caller means unsampled.
func TestAnUnsampledCallerIsHeeded(t *testing.T) {
	n, c := tracedNode(t, options(), "TRACECONTEXT=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
	if b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm")); status != 0 || b.stdout.String() != "hello\n" {
		t.Errorf("exit status %d, %q", status, b.stdout)
	}
	time.Sleep(500 * time.Millisecond)
	if got := c.Spans(); len(got) != 0 {
		t.Errorf("spans all the same:\n%s", collector.Tree(got))
	}
}

// With no collector named, nothing of telemetry is there.
func TestWithoutAnEndpointThereIsNoTelemetry(t *testing.T) {
	n := newNode(t, options())
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"), oci.WithEnv([]string{"A=1"}))
	b.mustCreate(t)
	for _, pid := range []int{shimPID(t, n, b.ID()), int(b.task.Pid())} {
		if got := environ(t, pid, "TRACECONTEXT"); got != "" {
			t.Errorf("TRACECONTEXT=%s", got)
		}
	}
	if _, err := shimClient(t, n, b.ID()).Delete(b.ctx, &taskapi.DeleteRequest{ID: b.ID()}); err != nil {
		t.Error(err)
	}
}

func TestExecsAndLinuxContainersAreInTheTraceOfTheirContainer(t *testing.T) {
	n := useNode(t)
	b := idle(t, n)
	b.runExec(t, "traced", nil, "/hello.wasm")
	life := trace(t, spans, b.ID(), "task.exec", "module.run", "instance.spawn")
	var below []string
	for _, s := range spans.Trace(life["task.create"].TraceID) {
		if s.Attrs["containerd.exec.id"] == "traced" {
			below = append(below, s.Name)
		}
	}
	for _, want := range []string{"task.exec", "task.start", "task.wait", "task.delete"} {
		if !slices.Contains(below, want) {
			t.Errorf("the exec has no %s: %v", want, below)
		}
	}
	l, _ := run(t, n, image(t, n, "linux", node.Program("hello", guest(t, "hello-static"))), args("/hello"))
	trace(t, spans, l.ID(), "task.create", "task.start", "task.wait", "task.delete")
}
