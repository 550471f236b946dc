package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/metadata"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

// What is in the trace of a container, and where, by calls that containerd makes and
// by some that it does not.

// tracedPod is a raw shim that is traced, and its environment as given.
func tracedPod(t *testing.T, env ...string) (*rawPod, *collector.Collector) {
	t.Helper()
	n := useNode(t)
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	for _, kv := range append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.Addr(), "OTEL_BSP_SCHEDULE_DELAY=100"}, env...) {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	return newRawPod(t, n), c
}

// caller is a span of a client's.
type caller struct{ traceID, spanID string }

func (c caller) traceparent() string { return "00-" + c.traceID + "-" + c.spanID + "-01" }

// call is the n-th caller, each in a trace of its own.
func call(n int) caller { return caller{fmt.Sprintf("%032x", n), fmt.Sprintf("%016x", n)} }

// on is ctx with the caller's span, as a ttrpc client sends it.
func (c caller) on(ctx context.Context) context.Context {
	md, _ := ttrpc.GetMetadata(ctx)
	md = md.Clone()
	md.Set("traceparent", c.traceparent())
	return ttrpc.WithMetadata(ctx, md)
}

// by has the member called by c from now on.
func (m *member) by(c caller) *member {
	pod := *m.pod
	pod.ctx = c.on(pod.ctx)
	called := *m
	called.pod = &pod
	return &called
}

// failures are the names of the spans that failed, of the trace that the container
// was created in.
func failures(t *testing.T, c *collector.Collector, id string) (names []string) {
	t.Helper()
	create := trace(t, c, id, "task.create")["task.create"]
	for _, s := range c.Trace(create.TraceID) {
		if s.Failed {
			names = append(names, s.Name)
		}
		if s.Failed != (s.Attrs["error.type"] != "") || s.Failed != (s.Status != "") {
			t.Errorf("%s: failed %t, %q, %v", s.Name, s.Failed, s.Status, s.Attrs)
		}
	}
	slices.Sort(names)
	return names
}

// orphans are the spans whose parent has not come.
func orphans(c *collector.Collector, parents ...string) (names []string) {
	spans := c.Spans()
	known := map[string]bool{"": true}
	for _, p := range parents {
		known[p] = true
	}
	for _, s := range spans {
		known[s.ID] = true
	}
	for _, s := range spans {
		if !known[s.Parent] {
			names = append(names, s.Name)
		}
	}
	return names
}

func event(s collector.Span, name string) (found []collector.Event) {
	for _, e := range s.Events {
		if e.Name == name {
			found = append(found, e)
		}
	}
	return found
}

func TestEveryHookAndItsLoggerAreInTheTraceOfAContainer(t *testing.T) {
	l := newHookLog(t)
	hook := func(name string) []specs.Hook { return []specs.Hook{l.hook(t, name, "")} }
	hooks := &specs.Hooks{CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"), Poststart: hook("poststart"), Poststop: hook("poststop")}
	hooks.Prestart = hook("prestart") //nolint:staticcheck // deprecated, and in use
	p, c := tracedPod(t)
	m := p.member(t, "hello.wasm", specOf(func(s *oci.Spec) { s.Hooks = hooks }))
	m.stdio = cio.Config{Stdout: loggerURI(t.TempDir(), "")}
	if status, err := m.run(); err != nil || status != 0 {
		t.Fatalf("%d, %v", status, err)
	}
	kinds := []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}
	want := []string{"logger.start", "task.exit", "task.delete"}
	for _, kind := range kinds {
		want = append(want, "hook."+kind)
	}
	spans := trace(t, c, m.id, want...)
	checkTree(t, spans, m.id)
	for _, kind := range kinds {
		if got, want := spans["hook."+kind].Attrs["process.executable.path"], filepath.Join(l.dir, kind+".sh"); got != want {
			t.Errorf("the hook of kind %s is %q, want %q", kind, got, want)
		}
	}
	if got, want := spans["logger.start"].Attrs["process.executable.path"], filepath.Join(bin(), "logger"); got != want {
		t.Errorf("the logger is %q, want %q", got, want)
	}
	p.close(t)
}

func TestAModuleThatIsMountedIsKnownAsSuch(t *testing.T) {
	p, c := tracedPod(t)
	m := p.member(t, "hello.wasm", args("/v/trap.wasm"), bind(bin()+"/guests", "/v"))
	if status, err := m.run(); err != nil || status != 134 {
		t.Fatalf("%d, %v", status, err)
	}
	if got := trace(t, c, m.id, "module.resolve")["module.resolve"].Attrs; got["wasm.module.source"] != "mount" || got["wasm.module.path"] != "/v/trap.wasm" {
		t.Errorf("module.resolve: %v", got)
	}
	p.close(t)
}

// The start of the shim is in the first one's trace only, and what the first one's
// client says of its trace is said of no other.
func TestEachContainerOfAPodHasATraceOfItsOwn(t *testing.T) {
	p, c := tracedPod(t, "TRACECONTEXT="+call(1).traceparent())
	parents := map[string]string{}
	for i, m := range []*member{
		p.member(t, "hello.wasm"),
		p.member(t, "hello.wasm"),
		p.member(t, "hello.wasm").by(call(7)),
		p.linux(t, "exit 0").by(call(8)),
	} {
		if status, err := m.run(); err != nil || status != 0 {
			t.Fatalf("%d, %v", status, err)
		}
		create := trace(t, c, m.id, "task.create", "task.start", "task.wait", "task.exit", "task.delete")["task.create"]
		starts := 0
		for _, s := range c.Trace(create.TraceID) {
			if s.Name == "shim.start" {
				starts++
			}
			if id := s.Attrs["container.id"]; id != "" && id != m.id {
				t.Errorf("%s of another container: %s", s.Name, id)
			}
		}
		if starts > 1 || (starts == 1) != (i == 0) {
			t.Errorf("container %d has %d shim.start", i, starts)
		}
		if other, taken := parents[create.TraceID]; taken {
			t.Errorf("%s and %s are in one trace", m.id, other)
		}
		parents[create.TraceID] = m.id
		wantTrace := map[int]string{0: call(1).traceID, 2: call(7).traceID, 3: call(8).traceID}[i]
		if wantTrace != "" && create.TraceID != wantTrace || wantTrace == "" && create.Parent != "" {
			t.Errorf("container %d is in %s below %q, want %s", i, create.TraceID, create.Parent, wantTrace)
		}
	}
	p.close(t)
	if got := orphans(c, call(1).spanID, call(7).spanID, call(8).spanID); len(got) > 0 {
		t.Errorf("without their parents: %v", got)
	}
}

// Every call of another trace has a span there as well, and the two are linked.
func TestEveryCallOfAnotherTraceIsLinked(t *testing.T) {
	p, c := tracedPod(t)
	m := p.member(t, "probe.wasm", args("/app.wasm", "idle"))
	for i, step := range []func(*member) error{
		(*member).create,
		func(m *member) error { return m.start("") },
		func(m *member) error { return m.exec("e", "/app.wasm", "idle") },
		func(m *member) error { return m.start("e") },
		func(m *member) error { return m.kill("e", 15) },
		func(m *member) error { _, err := m.wait("e"); return err },
		func(m *member) error { return m.delete("e") },
		func(m *member) error {
			_, err := m.pod.Update(m.pod.ctx, &taskapi.UpdateTaskRequest{ID: m.id})
			if err == nil {
				t.Error("an Update without resources has not failed")
			}
			return nil
		},
		func(m *member) error { return m.kill("", 9) },
		func(m *member) error { _, err := m.wait(""); return err },
		func(m *member) error { return m.delete("") },
	} {
		if err := step(m.by(call(i + 1))); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	trace(t, c, m.id, "task.delete", "task.exit")
	for i, op := range []string{"task.start", "task.exec", "task.start", "task.kill", "task.wait", "task.delete", "task.update", "task.kill", "task.wait", "task.delete"} {
		client := call(i + 2)
		eventually(t, op+" in the trace of its caller", func() bool { return len(c.Trace(client.traceID)) == 1 })
		theirs := c.Trace(client.traceID)[0]
		if theirs.Name != op || theirs.Parent != client.spanID || len(theirs.Links) != 1 || theirs.LinkTrace[0] != call(1).traceID {
			t.Errorf("%+v, want a %s below %s, linked to one of %s", theirs, op, client.spanID, call(1).traceID)
			continue
		}
		ours := slices.DeleteFunc(c.Trace(call(1).traceID), func(s collector.Span) bool { return s.ID != theirs.Links[0] })
		if len(ours) != 1 || ours[0].Name != op || ours[0].Parent != call(1).spanID || !slices.Equal(ours[0].Links, []string{theirs.ID}) || ours[0].Failed != theirs.Failed {
			t.Errorf("%+v, want a %s linked to %s", ours, op, theirs.ID)
		}
	}
	p.close(t)
}

// A Create that fails has failed where it did, and nowhere else.
func TestACreateThatFailsIsAnErrorOfItsStage(t *testing.T) {
	p, c := tracedPod(t)
	rootfs := func(kind string) []*types.Mount { return []*types.Mount{{Type: kind, Source: "none"}} }
	change := func(f func(*oci.Spec)) []oci.SpecOpts { return []oci.SpecOpts{specOf(f)} }
	l := newHookLog(t)
	for name, tt := range map[string]struct {
		guest  string
		opts   []oci.SpecOpts
		stdio  cio.Config
		rootfs []*types.Mount
		spoil  func(t *testing.T, m *member)
		want   []string
	}{
		"config.json": {spoil: func(t *testing.T, m *member) {
			if err := os.WriteFile(filepath.Join(m.bundle, "config.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, want: []string{"bundle.load"}},
		"the root file system": {rootfs: rootfs("nosuch"), want: []string{"rootfs.mount"}},
		"what it asks for": {opts: change(func(s *oci.Spec) {
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/true"}}}
		}), want: []string{"bundle.check"}},
		"its seccomp profile": {opts: change(func(s *oci.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_NONSENSE"}
		}), want: []string{"bundle.check", "seccomp.compile"}},
		"its streams":       {stdio: cio.Config{Stdout: "/no/such"}, want: []string{"stdio.open"}},
		"its logger":        {stdio: cio.Config{Stdout: "binary:///no/such"}, want: []string{"logger.start", "stdio.open"}},
		"its cgroup":        {opts: []oci.SpecOpts{oci.WithCPUCFS(1, 1)}, want: []string{"cgroup.create"}},
		"too few processes": {opts: []oci.SpecOpts{oci.WithPidsLimit(1)}, want: []string{"instance.spawn"}},
		"a mount":           {opts: []oci.SpecOpts{bind("/no/such", "/v")}, want: []string{"sandbox.build", "sandbox.mount"}},
		"a hook": {opts: change(func(s *oci.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{l.hook(t, "bad", "exit 1")}}
		}), want: []string{"hook.createRuntime", "sandbox.build"}},
		"its entry point": {opts: []oci.SpecOpts{args("/none.wasm")}, want: []string{"module.resolve"}},
		"its module": {spoil: func(t *testing.T, m *member) {
			if err := os.WriteFile(filepath.Join(m.bundle, "rootfs", "app.wasm"), []byte("\x00asm\x01\x00\x00\x00garbage"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, want: []string{"module.compile", "module.translate"}},
		"what that exports": {guest: "nostart.wasm", want: []string{"module.load"}},
		"runc":              {guest: "hello-static", opts: []oci.SpecOpts{args("/app"), bind("/no/such", "/v")}, want: []string{"runc.create"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.guest == "" {
				tt.guest = "hello.wasm"
			}
			m := p.member(t, tt.guest, tt.opts...)
			if tt.spoil != nil {
				tt.spoil(t, m)
			}
			_, err := p.Create(p.ctx, &taskapi.CreateTaskRequest{ID: m.id, Bundle: m.bundle, Stdout: tt.stdio.Stdout, Rootfs: tt.rootfs})
			if err == nil {
				t.Fatal("created")
			}
			if err := m.delete(""); err == nil { // as containerd does
				t.Error("what was not created has been deleted")
			}
			trace(t, c, m.id, "task.delete") // in the same trace
			want := append([]string{"task.create", "task.delete"}, tt.want...)
			slices.Sort(want)
			if got := failures(t, c, m.id); !slices.Equal(got, want) {
				t.Errorf("failed: %v, want %v", got, want)
			}
			if s := trace(t, c, m.id, "task.create"); name == "a mount" && s["sandbox.mount"].Attrs["oci.mount.destination"] != "/v" {
				t.Errorf("sandbox.mount: %v", s["sandbox.mount"].Attrs)
			}
		})
	}
	p.close(t)
	if got := orphans(c); len(got) > 0 {
		t.Errorf("without their parents: %v", got)
	}
}

func TestAStartThatFailsIsAnErrorOfItsStage(t *testing.T) {
	p, c := tracedPod(t)
	l := newHookLog(t)
	m := p.member(t, "spin.wasm", specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{Poststart: []specs.Hook{l.hook(t, "bad", "exit 1")}}
	}))
	if err := m.create(); err != nil {
		t.Fatal(err)
	}
	if err := m.start(""); err == nil {
		t.Error("started")
	}
	if _, err := m.wait(""); err != nil {
		t.Error(err)
	}
	if err := m.delete(""); err != nil {
		t.Error(err)
	}
	trace(t, c, m.id, "task.delete")
	// The guest was killed, before it was entered or after.
	got := slices.DeleteFunc(failures(t, c, m.id), func(name string) bool { return name == "module.run" })
	if want := []string{"hook.poststart", "task.start"}; !slices.Equal(got, want) {
		t.Errorf("failed: %v, want %v", got, want)
	}
	t.Run("of an exec", func(t *testing.T) {
		m := p.member(t, "spin.wasm").mustRun(t)
		if err := m.exec("e", "/none.wasm"); err != nil {
			t.Fatal(err)
		}
		if err := m.start("e"); err == nil {
			t.Error("started")
		}
		eventually(t, "task.start of the exec", func() bool {
			return slices.Equal(failures(t, c, m.id), []string{"module.resolve", "task.start"})
		})
		m.end(t)
	})
	p.close(t)
}

func TestACreateThatIsGivenUpSaysSoInItsTrace(t *testing.T) {
	p, c := tracedPod(t)
	l := newHookLog(t)
	for errorType, give := range map[string]func(m *member) error{
		"DEADLINE_EXCEEDED": func(m *member) error {
			ctx, cancel := context.WithTimeout(p.ctx, 500*time.Millisecond)
			defer cancel()
			return m.createBy(ctx, p)
		},
		"CANCELLED": func(m *member) error { // the client goes away
			shim, conn := p.dial(t)
			time.AfterFunc(500*time.Millisecond, func() { conn.Close() })
			return m.createBy(p.ctx, shim)
		},
	} {
		t.Run(errorType, func(t *testing.T) {
			m := p.member(t, "hello.wasm", specOf(func(s *oci.Spec) {
				s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{l.hook(t, "slow", "sleep 1000")}}
			}))
			if err := give(m); err == nil {
				t.Fatal("created")
			}
			want := []string{"hook.createRuntime", "sandbox.build", "task.create"}
			if got := failures(t, c, m.id); !slices.Equal(got, want) {
				t.Errorf("failed: %v, want %v", got, want)
			}
			for _, name := range want {
				if got := trace(t, c, m.id, name)[name].Attrs["error.type"]; got != errorType {
					t.Errorf("%s: error.type %q", name, got)
				}
			}
		})
	}
	p.close(t)
}

func TestACompilationBySomebodyElseIsWaitedForInTheTrace(t *testing.T) {
	p, c := tracedPod(t)
	var wg sync.WaitGroup
	members := []*member{p.member(t, "probe.wasm", args("/app.wasm", "exit", "0")), p.member(t, "probe.wasm", args("/app.wasm", "exit", "0"))}
	for _, m := range members {
		wg.Go(func() {
			if err := m.create(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var hits, waits []string
	for _, m := range members {
		spans := trace(t, c, m.id, "module.compile")
		hits = append(hits, spans["module.compile"].Attrs["wasm.cache.hit"])
		if s, ok := spans["compiler.wait"]; ok {
			waits = append(waits, spans["module.compile"].Attrs["wasm.cache.hit"])
			if s.Parent != spans["module.compile"].ID {
				t.Error("compiler.wait is not below module.compile")
			}
		}
		if err := m.delete(""); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(hits)
	if !slices.Equal(hits, []string{"false", "true"}) || !slices.Equal(waits, []string{"true"}) {
		t.Errorf("hits %v, those that waited %v", hits, waits)
	}
	p.close(t)
}

func TestWhatEndedAGuestIsAnEventOfItsRun(t *testing.T) {
	p, c := tracedPod(t)
	t.Run("a signal", func(t *testing.T) {
		m := p.member(t, "spin.wasm").mustRun(t)
		trace(t, c, m.id, "module.start")
		for _, sig := range []uint32{28, 15} { // SIGWINCH ends nothing
			if err := m.kill("", sig); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.wait(""); err != nil {
			t.Error(err)
		}
		if err := m.delete(""); err != nil {
			t.Error(err)
		}
		s := trace(t, c, m.id, "module.run", "task.exit", "task.delete")
		kills := event(s["module.run"], "kill")
		if len(kills) != 2 || kills[0].Attrs["wasm.kill.signal"] != "28" || kills[1].Attrs["wasm.kill.signal"] != "15" || kills[1].At.After(s["task.exit"].Start) {
			t.Errorf("module.run tells of %v", s["module.run"].Events)
		}
		if got := s["task.exit"]; got.Attrs["process.exit.code"] != "143" || len(event(got, "oom")) != 0 || !slices.Equal(got.Links, []string{s["module.run"].ID}) {
			t.Errorf("task.exit: %+v", got)
		}
	})
	t.Run("somebody on the host", func(t *testing.T) {
		m := p.member(t, "spin.wasm").mustRun(t)
		trace(t, c, m.id, "module.start")
		if err := syscall.Kill(m.pidOf(t, ""), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := m.wait(""); err != nil {
			t.Error(err)
		}
		m.end(t)
		s := trace(t, c, m.id, "module.run", "task.exit", "task.delete")
		if run := s["module.run"]; !run.Failed || !strings.Contains(run.Status, "signal 9") || len(run.Events) != 0 {
			t.Errorf("module.run: %+v", run)
		}
	})
	little := []oci.SpecOpts{oci.WithMemoryLimit(50 * mib), oci.WithMemorySwap(50 * mib)}
	for name, m := range map[string]*member{
		"want of memory":                       p.member(t, "limits-c.wasm", append(little, args("/app.wasm", "file", "/dev/shm/f", "60"))...),
		"want of memory, of a Linux container": p.linux(t, "exec dd if=/dev/zero of=/dev/shm/f bs=1M count=60", little...),
	} {
		t.Run(name, func(t *testing.T) {
			if status, err := m.run(); err != nil || status != 137 {
				t.Fatalf("%d, %v", status, err)
			}
			s := trace(t, c, m.id, "task.exit", "task.delete")
			if got := event(s["task.exit"], "oom"); len(got) == 0 {
				t.Errorf("task.exit tells of %v", s["task.exit"].Events)
			}
			if run, ok := s["module.run"]; ok && len(event(run, "oom")) != 1 {
				t.Errorf("module.run tells of %v", run.Events)
			}
		})
	}
	t.Run("itself", func(t *testing.T) {
		m := p.member(t, "probe.wasm", args("/app.wasm", "exit", "1"))
		if status, err := m.run(); err != nil || status != 1 {
			t.Fatalf("%d, %v", status, err)
		}
		trace(t, c, m.id, "task.exit", "task.delete")
		if got := failures(t, c, m.id); len(got) > 0 {
			t.Errorf("failed: %v; the guest has exited as it wanted to", got)
		}
	})
	p.close(t)
}

func TestTheLifeOfALinuxContainerIsOneTrace(t *testing.T) {
	p, c := tracedPod(t)
	m := p.linux(t, "sleep 0.2; exit 3")
	if err := m.create(); err != nil {
		t.Fatal(err)
	}
	if err := m.start(""); err != nil {
		t.Fatal(err)
	}
	if status, err := m.runExec("e", "/busybox", "sh", "-c", "exit 4"); err != nil || status != 4 {
		t.Errorf("exec: %d, %v", status, err)
	}
	if status, err := m.wait(""); err != nil || status != 3 {
		t.Fatalf("%d, %v", status, err)
	}
	if err := m.delete(""); err != nil {
		t.Fatal(err)
	}
	create := trace(t, c, m.id, "shim.start", "task.create", "runc.create", "runc.start", "runc.delete", "task.delete")["task.create"]
	var spans []collector.Span
	eventually(t, "both deletes", func() bool {
		spans = c.Trace(create.TraceID)
		deletes := 0
		for _, s := range spans {
			if s.Name == "task.delete" {
				deletes++
			}
		}
		return deletes == 2
	})
	byID := map[string]collector.Span{}
	for _, s := range spans {
		byID[s.ID] = s
	}
	exits := map[string]string{}
	for _, s := range spans {
		if parent := parents[s.Name]; parent != "" && byID[s.Parent].Name != parent && s.Name != "rootfs.unmount" {
			t.Errorf("%s is below %s, want %s", s.Name, byID[s.Parent].Name, parent)
		}
		if s.Failed {
			t.Errorf("%s has failed: %s", s.Name, s.Status)
		}
		if s.Name == "task.exit" {
			exits[s.Attrs["containerd.exec.id"]] = s.Attrs["process.exit.code"]
			if byID[s.Parent].Attrs["containerd.exec.id"] != s.Attrs["containerd.exec.id"] || s.Attrs["container.id"] != m.id {
				t.Errorf("task.exit %v is below %v", s.Attrs, byID[s.Parent].Attrs)
			}
		}
	}
	if exits[""] != "3" || exits["e"] != "4" || len(exits) != 2 {
		t.Errorf("exits %v", exits)
	}
	p.close(t)
}

// What has been seen of a trace is whole: no parent was still to come.
func TestAShimThatIsKilledLeavesNoOrphans(t *testing.T) {
	p, c := tracedPod(t)
	m := p.member(t, "spin.wasm")
	if err := m.create(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan struct{})
	go func() { // an RPC that stays open for as long as the guest runs
		defer close(waited)
		_, _ = m.wait("") // ends with the shim
	}()
	if err := m.start(""); err != nil {
		t.Fatal(err)
	}
	if err := m.exec("e", "/app.wasm"); err != nil {
		t.Fatal(err)
	}
	if err := m.start("e"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both runs show", func() bool {
		starts := 0
		for _, s := range c.Spans() {
			if s.Name == "module.start" {
				starts++
			}
		}
		return starts == 2
	})
	time.Sleep(200 * time.Millisecond) // twice the delay
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-waited
	if got := deleteBinary(t, p.node, m.id, m.bundle); got.ExitStatus != 137 {
		t.Errorf("delete: %v", got)
	}
	_ = os.Remove(strings.TrimPrefix(p.address, "unix://")) // it could not do that; the container's `delete` does not know it
	trace(t, c, m.id, "shim.start", "task.create", "bundle.load", "module.start", "task.start", "task.exec")
	if got := orphans(c); len(got) > 0 {
		t.Errorf("without their parents: %v\n%s", got, collector.Tree(c.Spans()))
	}
}

// The kubelet sends the context of each of its calls by CRI.
func TestTheContextOfTheKubeletIsTheContainers(t *testing.T) {
	need(t)
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	opts := options(sendTo(c.Addr())...)
	opts.CRI = true
	n := newNode(t, opts)
	podImages(t, n)
	p := newPodOn(t, n)
	kubelet := func(n int) *criPod {
		q := *p
		q.ctx = metadata.AppendToOutgoingContext(p.ctx, "traceparent", call(n).traceparent())
		return &q
	}
	p.id = kubelet(1).up("wazero").id
	life := map[int]string{1: p.id}
	for i := 2; i <= 4; i += 2 {
		id := kubelet(i).create(probeImage, []string{"exit", "0"})
		if err := kubelet(i + 1).start(id); err != nil {
			t.Fatal(err)
		}
		p.exited(id)
		life[i+1] = id // the task is made when the container is started
	}
	for n, id := range life {
		want := []string{"task.create", "task.start"}
		if n > 1 {
			want = append(want, "module.run", "task.exit", "task.wait", "task.delete")
		}
		spans := trace(t, c, id, want...)
		if got := spans["task.create"]; got.TraceID != call(n).traceID || got.Parent == "" {
			t.Errorf("%s is in trace %s below %q, want %s", id, got.TraceID, got.Parent, call(n).traceID)
		}
		if _, first := spans["shim.start"]; first != (n == 1) {
			t.Errorf("%s: shim.start is in its trace: %t", id, first)
		}
	}
}
