package test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/hostile"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

const (
	// lifeTime bounds the life of a container whatever the collector does.
	lifeTime = 10 * time.Second
	// flushTime bounds how long a shim waits for the collector before it ends; the
	// rest is for a busy machine.
	flushTime = 2*time.Second + 3*time.Second
	// token is a secret that the exporter sends with each request.
	token = "s3cr3t-t0ken"
)

// An outcome is what a client sees of a process.
type outcome struct {
	stdout, stderr string
	status         uint32
}

// outcomes are those of the containers of [lives], by name, and what the life of
// each took.
type outcomes struct {
	of   map[string]outcome
	took map[string]time.Duration
	pids []int // of the shims
}

// end is the rest of a life: it starts the process, has act do what is to be done
// with it, waits for the exit and deletes it.
func (b *box) end(ctx context.Context, act func() error) (outcome, error) {
	exit, err := b.task.Wait(ctx)
	if err != nil {
		return outcome{}, fmt.Errorf("wait: %w", err)
	}
	if err := b.task.Start(ctx); err != nil {
		return outcome{}, fmt.Errorf("start: %w", err)
	}
	if act != nil {
		if err := act(); err != nil {
			return outcome{}, err
		}
	}
	status := <-exit
	if err := status.Error(); err != nil {
		return outcome{}, fmt.Errorf("wait: %w", err)
	}
	if _, err := b.task.Delete(ctx); err != nil {
		return outcome{}, fmt.Errorf("delete: %w", err)
	}
	return outcome{b.stdout.String(), b.stderr.String(), status.ExitCode()}, nil
}

// lives has containers of all kinds live at the same time: modules that exit, trap
// and are killed, one with execs, a Linux container, and two on one shim.
func lives(t *testing.T, n *node.Node) outcomes {
	t.Helper()
	img := image(t, n, "lives", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("hello.wasm", guest(t, "hello.wasm")),
		node.Regular("trap.wasm", guest(t, "trap.wasm")), node.Program("hello", guest(t, "hello-static")))
	run(t, n, img, args("/app.wasm")) // compiled from now on
	group := oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)})
	boxes := map[string]*box{
		"exit":   container(t, n, img, args("/app.wasm", "args", "stderr", "burst", "300000", "exit", "3")),
		"trap":   container(t, n, img, args("/trap.wasm")),
		"killed": container(t, n, img, args("/app.wasm", "print", "up", "idle")),
		"linux":  container(t, n, img, args("/hello")),
		"pod 1":  container(t, n, img, args("/app.wasm", "errburst", "100000"), group),
		"pod 2":  container(t, n, img, args("/hello.wasm"), group),
	}
	acts := map[string]func(*box) error{
		"killed": func(b *box) error {
			for i := range 3 {
				e, err := b.exec(t, fmt.Sprint("e", i), nil, "/app.wasm", "print", "x", "exit", "4")
				if err == nil {
					err = e.Start(b.ctx)
				}
				if err != nil {
					return fmt.Errorf("exec: %w", err)
				}
				if status := e.finish(t, b.ctx); status != 4 || e.stdout.String() != "x\n" {
					return fmt.Errorf("exec: %d, %q", status, e.stdout)
				}
			}
			return b.task.Kill(b.ctx, syscall.SIGTERM)
		},
	}
	got := outcomes{of: map[string]outcome{}, took: map[string]time.Duration{}}
	var (
		mu sync.Mutex
		wg sync.WaitGroup
		// Closed once the pod's first container is there, and the second: the first is
		// not to be gone, and its shim, when that joins.
		made, joined = make(chan struct{}), make(chan struct{})
	)
	for name, b := range boxes {
		wg.Go(func() {
			if name == "pod 2" {
				<-made
			}
			began := time.Now()
			ctx, cancel := context.WithTimeout(b.ctx, 2*lifeTime)
			defer cancel()
			b.ctx = ctx
			err := b.create()
			pid := 0
			if err == nil {
				pid = shimPID(t, n, b.ID())
			}
			act := func() error { return nil }
			if a := acts[name]; a != nil {
				act = func() error { return a(b) }
			}
			switch name {
			case "pod 1":
				close(made)
				act = func() error { <-joined; return nil }
			case "pod 2":
				close(joined)
			}
			var o outcome
			if err == nil {
				o, err = b.end(ctx, act)
			}
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			got.of[name], got.took[name] = o, took
			got.pids = append(got.pids, pid)
			if took > lifeTime {
				t.Errorf("%s: from Create to Delete it took %v", name, took)
			}
		})
	}
	wg.Wait()
	return got
}

var (
	plainOnce sync.Once
	plain     outcomes
)

// withoutTelemetry are the outcomes without telemetry.
func withoutTelemetry(t *testing.T) outcomes {
	t.Helper()
	plainOnce.Do(func() { plain = lives(t, newNode(t, options())) })
	if len(plain.of) == 0 {
		t.Fatal("nothing to compare with")
	}
	return plain
}

// same compares what came of the containers with a run without telemetry.
func same(t *testing.T, got, want outcomes) {
	t.Helper()
	for name, w := range want.of {
		g := got.of[name]
		if g.status != w.status {
			t.Errorf("%s: exit status %d, want %d", name, g.status, w.status)
		}
		if g.stdout != w.stdout || g.stderr != w.stderr {
			t.Errorf("%s: %d and %d bytes of output, want %d and %d, the same:\n%.300q", name, len(g.stdout), len(g.stderr), len(w.stdout), len(w.stderr), g.stderr)
		}
		t.Logf("%-8s %6d ms, without telemetry %6d ms", name, got.took[name].Milliseconds(), want.took[name].Milliseconds())
	}
}

// gone waits until the shims have ended, within the bound of their flush.
func gone(t *testing.T, pids []int) {
	t.Helper()
	began := time.Now()
	for slices.ContainsFunc(pids, alive) {
		if time.Since(began) > flushTime {
			t.Fatalf("a shim of %v is there %v after the last Delete", pids, flushTime)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("the shims were gone after %d ms", time.Since(began).Milliseconds())
}

// ours are those of [traces] that belong to this test: others that run beside it
// have the same cgroups, but not the same names.
func ours(t *testing.T, n *node.Node, name string) func() []string {
	return func() []string {
		return slices.DeleteFunc(traces(t, n), func(s string) bool {
			return (strings.HasPrefix(s, "/sys/") || strings.HasPrefix(s, "/run/")) && !strings.Contains(s, name)
		})
	}
}

// shimLines are the lines of containerd's log that its shims wrote: of containers
// that fare well there are none.
func shimLines(n *node.Node) (lines []string) {
	for _, line := range strings.Split(strings.TrimSpace(n.Log()), "\n") {
		if strings.Contains(line, "runtime="+node.Runtime) || !strings.HasPrefix(line, `time="`) {
			lines = append(lines, line)
		}
	}
	return lines
}

// A collector may do what it wants.
func TestACollectorIsNeverInTheWay(t *testing.T) {
	need(t)
	t.Parallel()
	want := withoutTelemetry(t)
	for name, h := range hostilities {
		protocols := h.protocols
		if protocols == nil {
			protocols = []string{"grpc", "http/protobuf"}
		}
		for _, protocol := range protocols {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				s, env := h.start(t)
				o := options()
				o.ShimEnv = append(env, "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol, "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20"+token+",broken"+token)
				n := newNode(t, o)
				undisturbed(t, n, want)
				if s != nil && !h.away && s.Accepted() == 0 {
					t.Error("nobody came by: this has tested nothing")
				}
			})
		}
	}
}

// undisturbed runs containers on a node with hostile telemetry: they are as they
// are without, nothing is left of them, and the log is short.
func undisturbed(t *testing.T, n *node.Node, want outcomes) {
	t.Helper()
	id := newID(t)
	left := ours(t, n, id[:strings.LastIndex(id, "-")])
	before := left()
	got := lives(t, n)
	same(t, got, want)
	gone(t, got.pids)
	nothingMore(t, before, left)
	brief(t, n, len(got.pids))
}

// brief holds the log to a few short lines for each shim, without a secret.
func brief(t *testing.T, n *node.Node, shims int) {
	t.Helper()
	lines := shimLines(n)
	for _, line := range lines {
		if strings.Contains(line, token) {
			t.Errorf("a secret is in the log: %.1000s", line)
		}
		if len(line) > 4<<10 {
			t.Errorf("a line of %d bytes in the log: %.1000s", len(line), line)
		}
	}
	if len(lines) > 3*shims {
		t.Errorf("%d lines of %d shims:\n%s", len(lines), shims, strings.Join(lines, "\n"))
	}
	t.Logf("%d lines of the shims:\n%.3000s", len(lines), strings.Join(lines[:min(3, len(lines))], "\n"))
}

// spokenTo is what net/http says of a server that does not speak HTTP 1 and speaks: the
// second if that comes before there is a request, one of the rest if while it is sent.
const spokenTo = "malformed HTTP response|readLoopPeekFailLocked|connection reset by peer|use of closed network connection|broken pipe"

// What a collector does is in containerd's log, so that an operator finds out why
// nothing arrives: see docs/telemetry.md, Troubleshooting.
func TestTheLogSaysWhatIsWrongWithACollector(t *testing.T) {
	need(t)
	t.Parallel()
	for name, said := range map[string]map[string]string{
		"absent":       {"grpc": "connection refused", "http/protobuf": "connection refused"},
		"no such name": {"http/protobuf": "collector.invalid"},
		"refuses":      {"grpc": "PermissionDenied", "http/protobuf": "403 Forbidden"},
		"refuses at length, with what it was sent": {"grpc": "PermissionDenied", "http/protobuf": "403 Forbidden"},
		"accepts and hangs":                        {"grpc": "deadline exceeded", "http/protobuf": "deadline exceeded"},
		"says garbage without end":                 {"grpc": "error reading server preface", "http/protobuf": spokenTo},
		"answers with a gibibyte":                  {"grpc": "received message larger than max", "http/protobuf": "response body too large"},
		"speaks HTTP 1 only":                       {"grpc": "looked like an HTTP/1.1 header"},
		"speaks gRPC only":                         {"http/protobuf": spokenTo},
		"TLS where it should not be":               {"grpc": "error reading server preface"},
		"has no such service":                      {"grpc": "Unimplemented"},
		"an expired certificate":                   {"grpc": "certificate has expired", "http/protobuf": "certificate has expired"},
		"an authority nobody knows":                {"grpc": "unknown authority", "http/protobuf": "unknown authority"},
		"the authority's file is missing":          {"grpc": "no such file", "http/protobuf": "no such file"},
		"the authority's file is garbage":          {"grpc": "OTEL_EXPORTER_OTLP_CERTIFICATE", "http/protobuf": "OTEL_EXPORTER_OTLP_CERTIFICATE"},
		"the authority's file is a FIFO":           {"grpc": "not a regular file", "http/protobuf": "not a regular file"},
		"no TLS where it should be":                {"grpc": "first record does not look like a TLS handshake", "http/protobuf": "server gave HTTP response to HTTPS client"},
	} {
		for protocol, want := range said {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				_, env := hostilities[name].start(t)
				o := options()
				o.ShimEnv = append(env, "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol, "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_TIMEOUT=2000", "OTEL_BSP_EXPORT_TIMEOUT=2500", // of a failure within a minute only the first is said
					"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20"+token+",broken"+token)
				n := newNode(t, o)
				b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
				b.mustCreate(t)
				b.mustStart(t)
				said := regexp.MustCompile(want)
				logged := func() bool { return said.MatchString(strings.Join(shimLines(n), "\n")) }
				for tries := 1; !soon(logged); tries++ {
					if tries == 3 { // forty run at once
						t.Fatalf("the log does not say %q:\n%s", want, n.Log())
					}
				}
				brief(t, n, 1)
			})
		}
	}
}

// hang is the environment of one whose collector takes everything and answers nothing.
func hang(t *testing.T) []string {
	t.Helper()
	_, env := tcp(hostile.Silent)(t)
	return append(env, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
}

// The variables may have any value, of a collector that hangs.
func TestNoVariableIsInTheWay(t *testing.T) {
	need(t)
	t.Parallel()
	want := withoutTelemetry(t)
	for _, env := range [][]string{
		{"OTEL_BSP_MAX_QUEUE_SIZE=-1"}, {"OTEL_BSP_MAX_QUEUE_SIZE=9223372036854775807"}, {"OTEL_BSP_MAX_QUEUE_SIZE=1"},
		{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE=-1"}, {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE=1"},
		{"OTEL_BSP_SCHEDULE_DELAY=0"}, {"OTEL_BSP_EXPORT_TIMEOUT=9223372036854775807", "OTEL_EXPORTER_OTLP_TIMEOUT=9223372036854"},
		{"OTEL_EXPORTER_OTLP_TIMEOUT=-1"}, {"OTEL_EXPORTER_OTLP_TIMEOUT=soon"},
		{"OTEL_TRACES_SAMPLER=nobody"}, {"OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=many"},
		{"OTEL_RESOURCE_ATTRIBUTES=%zz,=,a"}, {"OTEL_SERVICE_NAME=\xff"}, {"OTEL_PROPAGATORS=carrier-pigeon"},
		{"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=-1", "OTEL_SPAN_EVENT_COUNT_LIMIT=0", "OTEL_SPAN_LINK_COUNT_LIMIT=0", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT=0"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL=http/json"}, {"OTEL_EXPORTER_OTLP_COMPRESSION=zip"}, {"OTEL_EXPORTER_OTLP_COMPRESSION=gzip"},
		{"OTEL_TRACES_EXPORTER=zipkin"}, {"OTEL_GO_X_OBSERVABILITY=true"}, {"OTEL_METRIC_EXPORT_INTERVAL=0"}, {"OTEL_METRIC_EXPORT_INTERVAL=1"},
		{"HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1"},
		{"GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99"}, {"GODEBUG=http2debug=2"},
	} {
		t.Run(strings.Join(env, " "), func(t *testing.T) {
			t.Parallel()
			o := options()
			o.ShimEnv = append(hang(t), env...)
			n := newNode(t, o)
			b, status := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "args", "stderr", "burst", "300000", "exit", "3"))
			if got := (outcome{b.stdout.String(), b.stderr.String(), status}); got != want.of["exit"] {
				t.Errorf("status %d, %d and %d bytes of output", status, len(got.stdout), len(got.stderr))
			}
		})
	}
}

// A processor is for the containers.
func TestAnIdleShimWhoseCollectorFailsDoesNothing(t *testing.T) {
	need(t)
	for name, h := range map[string]hostility{"refuses": hostilities["refuses"], "hangs": hostilities["accepts and hangs"]} {
		t.Run(name, func(t *testing.T) {
			_, env := h.start(t)
			o := options()
			o.ShimEnv = append(env, "OTEL_BSP_SCHEDULE_DELAY=0", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
			n := newNode(t, o)
			b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"))
			b.mustCreate(t)
			b.mustStart(t)
			pid := shimPID(t, n, b.ID())
			time.Sleep(time.Second) // to settle
			const seconds, ticks = 2, 100
			before := processorTicks(t, pid)
			time.Sleep(seconds * time.Second)
			if used := processorTicks(t, pid) - before; used > seconds*ticks/10 {
				t.Errorf("more than a tenth of a processor: %d of %d ticks", used, seconds*ticks)
			}
		})
	}
}

// processorTicks is how long a process has had a processor, in hundredths of a second.
func processorTicks(t *testing.T, pid int) (ticks int) {
	t.Helper()
	_, rest, _ := strings.Cut(procFile(t, uint32(pid), "stat"), ") ")
	for _, field := range strings.Fields(rest)[11:13] { // utime, stime
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks
}

// Both containerd and its shims may have the collector that hangs: many containers,
// some killed, some with execs, and whole pods are as they are without.
func TestManyContainersAndACollectorThatHangs(t *testing.T) {
	need(t)
	n := newNode(t, options(hang(t)...))
	img := image(t, n, "many", node.Regular("app.wasm", guest(t, "hello.wasm")), node.Regular("spin.wasm", guest(t, "spin.wasm")), node.Program("busybox", guest(t, "busybox")))
	before := traces(t, n)
	var wg sync.WaitGroup
	next := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range next {
				began := time.Now()
				if err := oneOfMany(t, n, img, i); err != nil && !strings.Contains(err.Error(), "left process") {
					t.Errorf("task %d: %v", i, err)
				}
				if took := time.Since(began); took > lifeTime {
					t.Errorf("task %d took %v", i, took)
				}
			}
		})
	}
	for i := range 20 {
		next <- i
	}
	close(next)
	wg.Wait()
	p := startPod(t, n)
	shim := shimPID(t, n, p.pause.ID())
	p.containers["wasm"].runExec(t, "e", nil, "/app.wasm", "print", "x")
	began := time.Now()
	for _, b := range append([]*box{p.pause}, slices.Collect(maps.Values(p.containers))...) {
		if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if status := b.exit(t); status != 137 {
			t.Errorf("exit status %d", status)
		}
		b.delete(t)
	}
	if took := time.Since(began); took > lifeTime {
		t.Errorf("the end of a pod took %v", took)
	}
	gone(t, []int{shim})
	leaves(t, n, before)
}

// The shim that waits for the collector is not in the way of the next one.
func TestTheSameIDAtOnceWhileTheLastShimFlushes(t *testing.T) {
	need(t)
	o := options()
	o.ShimEnv = hang(t)
	n := newNode(t, o)
	img := app(t, n, "hello.wasm")
	b := container(t, n, img, args("/app.wasm"))
	for i := range 5 {
		b.stdout = &buffer{}
		b.mustCreate(t)
		pid := shimPID(t, n, b.ID())
		b.mustStart(t)
		if status := b.exit(t); status != 0 || b.stdout.String() != "hello\n" {
			t.Errorf("run %d: %d, %q", i, status, b.stdout)
		}
		b.delete(t)
		if !alive(pid) {
			t.Error("the shim did not flush: this has tested nothing")
		}
	}
}

// A collector that comes back at the same address gets what ends from then on,
// without the container's knowing.
func TestACollectorMayRestart(t *testing.T) {
	need(t)
	t.Parallel()
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			restarted(t, protocol)
		})
	}
}

func restarted(t *testing.T, protocol string) {
	t.Helper()
	first, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	o := options()
	o.ShimEnv = []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + first.Addr(), "OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol, "OTEL_BSP_SCHEDULE_DELAY=100"}
	n := newNode(t, o)
	b := idle(t, n)
	life := trace(t, first, b.ID(), "task.create", "task.start", "module.start")
	first.Close()
	// Some ends while it is away, and is lost.
	if _, status := b.runExec(t, "away", nil, "/app.wasm", "exit", "3"); status != 3 {
		t.Errorf("exec: %d", status)
	}
	time.Sleep(15 * time.Second) // gRPC's own pauses would be long by now
	second, err := collector.Listen(first.Addr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Close)
	if _, status := b.runExec(t, "back", nil, "/app.wasm", "exit", "4"); status != 4 {
		t.Errorf("exec: %d", status)
	}
	eventually(t, "the spans of the exec arrive", func() bool {
		return slices.ContainsFunc(second.Trace(life["task.create"].TraceID), func(s collector.Span) bool {
			return s.Name == "task.wait" && s.Attrs["containerd.exec.id"] == "back"
		})
	})
	if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := b.exit(t); status != 143 {
		t.Errorf("exit status %d", status)
	}
	b.delete(t)
	eventually(t, "the end of the container arrives", func() bool {
		return slices.ContainsFunc(second.Trace(life["task.create"].TraceID), func(s collector.Span) bool { return s.Name == "task.delete" && s.Attrs["containerd.exec.id"] == "" })
	})
}

// The disk that containerd logs to is full, when there is something to log.
func TestAFullDiskForTheLog(t *testing.T) {
	need(t)
	want := withoutTelemetry(t)
	o := options()
	_, env := hostilities["refuses"].start(t)
	o.ShimEnv = append(env, "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
	n := newNode(t, o)
	if err := n.Halt(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	small, log := filepath.Join(n.Dir, "small"), filepath.Join(n.Dir, "containerd.log")
	tmpfs(t, small, "64k")
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(small, "log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(small, "log"), log); err != nil {
		t.Fatal(err)
	}
	fill(t, small)
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	undisturbed(t, n, want)
	if n.Log() != "" {
		t.Errorf("there was room in the log: %q", n.Log())
	}
}

// containerd is stopped, its end of the log is full, and the collector fails: what
// the shim is asked by others it answers, and a container's end is seen to.
func TestContainerdIsStoppedAndTheLogIsFull(t *testing.T) {
	need(t)
	o := options()
	_, env := hostilities["refuses"].start(t)
	o.ShimEnv = append(env, "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
	n := newNode(t, o)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"), oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)}))
	b.mustCreate(t)
	b.mustStart(t)
	pid := shimPID(t, n, b.ID())
	shim := shimClient(t, n, b.ID())
	if err := syscall.Kill(n.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Until all its threads have stopped, one may empty the pipe.
	if err := unix.Waitid(unix.P_PID, n.Pid(), nil, unix.WSTOPPED, nil); err != nil {
		t.Fatal(err)
	}
	stopped := true
	resume := func() {
		if stopped {
			stopped = false
			if err := syscall.Kill(n.Pid(), syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}
	}
	defer resume()
	log, err := syscall.Open(filepath.Join(n.Bundle(b.ID()), "log"), syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(log)
	filler := []byte(strings.Repeat("-", 99) + "\n")
	for err == nil { // until it would wait
		_, err = syscall.Write(log, filler)
	}
	ctx, cancel := context.WithTimeout(b.ctx, lifeTime)
	defer cancel()
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil { // logs more than the pipe takes
		t.Fatal(err)
	}
	logs := func() { // a line, of a Create that fails: there is no such bundle
		unknown := marshalAny(t, &runtimeoptions.Options{ConfigBody: []byte("unknown = 1")})
		if _, err := shim.Create(ctx, &taskapi.CreateTaskRequest{ID: "other", Bundle: t.TempDir(), Options: unknown}); err == nil || ctx.Err() != nil {
			t.Fatalf("create: %v", err)
		}
	}
	for i := range 20 {
		logs()
		execID := fmt.Sprint("e", i)
		if _, err := shim.Exec(ctx, &taskapi.ExecProcessRequest{ID: b.ID(), ExecID: execID, Spec: marshalAny(t, &specs.Process{Args: []string{"/app.wasm", "exit", "3"}, Cwd: "/"})}); err != nil {
			t.Fatalf("exec: %v", err)
		}
		if _, err := shim.Start(ctx, &taskapi.StartRequest{ID: b.ID(), ExecID: execID}); err != nil {
			t.Fatalf("start: %v", err)
		}
		resp, err := shim.Wait(ctx, &taskapi.WaitRequest{ID: b.ID(), ExecID: execID})
		if err != nil || resp.ExitStatus != 3 {
			t.Fatalf("wait: %v, %v", resp, err)
		}
		if _, err := shim.Delete(ctx, &taskapi.DeleteRequest{ID: b.ID(), ExecID: execID}); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	if _, err := shim.Kill(ctx, &taskapi.KillRequest{ID: b.ID(), Signal: 9}); err != nil {
		t.Fatalf("kill: %v", err)
	}
	if resp, err := shim.Wait(ctx, &taskapi.WaitRequest{ID: b.ID()}); err != nil || resp.ExitStatus != 137 {
		t.Errorf("wait: %v, %v", resp, err)
	}
	t.Logf("it took %v", time.Since(began))
	resume()
	eventually(t, "the log says that it is not all there", func() bool {
		logs()
		return strings.Contains(n.Log(), "lines of the log were lost")
	})
	if status := b.exit(t); status != 137 {
		t.Errorf("exit status %d", status)
	}
	b.delete(t)
	gone(t, []int{pid})
}

// The spans that nobody takes are not kept.
func TestAShimWhoseCollectorHangsDoesNotGrow(t *testing.T) {
	for _, env := range append(hang(t), "OTEL_BSP_SCHEDULE_DELAY=50") {
		name, value, _ := strings.Cut(env, "=")
		t.Setenv(name, value)
	}
	// 8 MiB as without telemetry, and a full queue: 2048 spans and a batch of 512, of
	// 4 KiB; a connection may be on its way, with what gRPC has for it.
	livesLong(t, newNode(t, options()), size{memory: heapKiB(t, 18<<10), descriptors: 2, goroutines: 8})
}

// Nor those of a guest that makes as many as it can: see also
// TestTenThousandSpansOfAGuestAreInNobodysWay.
func TestTenThousandSpansOfAGuestAndACollectorThatHangs(t *testing.T) {
	need(t)
	o := options()
	o.ShimEnv = append(hang(t), "OTEL_BSP_SCHEDULE_DELAY=50")
	n := newNode(t, o)
	img := app(t, n, "observe-go.wasm")
	grouped := oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)})
	stays := container(t, n, img, args("/app.wasm", "hold"), grouped)
	stays.mustCreate(t)
	stays.mustStart(t)
	shim := shimPID(t, n, stays.ID())
	rss := residentKiB(t, shim)
	for range 3 {
		began := time.Now()
		b, status := run(t, n, img, args("/app.wasm", "spans", "10000"), grouped)
		if took := time.Since(began); status != 0 || took > lifeTime || b.stdout.String() != "10000 spans\n" {
			t.Errorf("status %d after %v, %q, %q", status, took, b.stdout, b.stderr)
		}
	}
	if got := residentKiB(t, shim); got > rss+heapKiB(t, 16<<10) {
		t.Errorf("the shim has grown from %d to %d KiB", rss, got)
	}
	if err := stays.task.Kill(stays.ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := stays.exit(t); status != 143 {
		t.Errorf("exit status %d", status)
	}
	stays.delete(t)
	gone(t, []int{shim})
	brief(t, n, 1)
}
