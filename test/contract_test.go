package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The numbers are those of the points of the contract that containerd and its
// clients rely on.

func TestContract01EventsOfATaskAreInOrder(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	// Tiny modules: their exit is as close behind the start as it gets.
	for range 10 {
		b, _ := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
		if got, want := names(rec.of(b.ID(), 4)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	}
}

func TestContract02ThereIsOneExitForAStartedProcess(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	b, _ := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	killed := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
	killed.mustCreate(t)
	killed.mustStart(t)
	for range 3 {
		_ = killed.task.Kill(killed.ctx, syscall.SIGTERM) // the later ones find it gone
	}
	killed.exit(t)
	killed.delete(t)
	failed := container(t, n, app(t, n, "nostart.wasm"), args("/app.wasm"))
	if err := failed.create(); err == nil {
		t.Fatal("created")
	}
	time.Sleep(200 * time.Millisecond)
	for id, want := range map[string]int{b.ID(): 1, killed.ID(): 1, failed.ID(): 0} {
		got := 0
		for _, name := range names(rec.of(id, want)) {
			if name == "exit" {
				got++
			}
		}
		if got != want {
			t.Errorf("%s: %d exits, want %d", id, got, want)
		}
	}
}

func TestContract03And04EventWaitStateAndDeleteAgree(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "exit", "9"))
	b.mustCreate(t)
	ch, err := b.task.Wait(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.mustStart(t)
	wait := <-ch
	state, err := b.task.Status(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	pid := b.task.Pid()
	del := b.delete(t)
	events := rec.of(b.ID(), 4)
	exit := events[2].(*eventstypes.TaskExit)
	gone := events[3].(*eventstypes.TaskDelete)
	if exit.ID != b.ID() || exit.ContainerID != b.ID() {
		t.Errorf("exit event of %q in %q, want %q in both", exit.ID, exit.ContainerID, b.ID())
	}
	for what, got := range map[string]struct {
		status uint32
		at     time.Time
	}{
		"event":        {exit.ExitStatus, exit.ExitedAt.AsTime()},
		"delete event": {gone.ExitStatus, gone.ExitedAt.AsTime()},
		"state":        {state.ExitStatus, state.ExitTime},
		"delete":       {del.ExitCode(), del.ExitTime()},
		"wait":         {wait.ExitCode(), wait.ExitTime()},
	} {
		if got.status != 9 || !got.at.Equal(exit.ExitedAt.AsTime()) {
			t.Errorf("%s: status %d at %v, want 9 at %v", what, got.status, got.at, exit.ExitedAt.AsTime())
		}
	}
	if exit.Pid != pid || gone.Pid != pid {
		t.Errorf("pids %d and %d, want %d", exit.Pid, gone.Pid, pid)
	}
}

func TestContract05TheExitIsOnDiskBeforeItIsAnEvent(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "exit", "21"))
	b.mustCreate(t)
	b.mustStart(t)
	if got := names(rec.of(b.ID(), 3)); len(got) != 3 {
		t.Fatalf("events %v", got)
	}
	record, err := os.ReadFile(filepath.Join(n.Bundle(b.ID()), "exit.json"))
	if err != nil || !strings.Contains(string(record), `"Status":21`) {
		t.Fatalf("exit.json: %s, %v", record, err)
	}
	t.Run("delete returns it after a crash of the shim", func(t *testing.T) {
		dir := bundle(t, "crashed", minimal(t, "crashed", "/app.wasm"), "")
		if err := os.WriteFile(filepath.Join(dir, "exit.json"), record, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := deleteBinary(t, n, "crashed", dir); got.ExitStatus != 21 || got.Pid != b.task.Pid() {
			t.Errorf("delete returns %v", got)
		}
	})
	t.Run("without one: killed, now, and the pid", func(t *testing.T) {
		dir := bundle(t, "killed", minimal(t, "killed", "/app.wasm"), "")
		if err := os.WriteFile(filepath.Join(dir, "init.pid"), []byte("4194000"), 0o600); err != nil {
			t.Fatal(err)
		}
		got := deleteBinary(t, n, "killed", dir)
		if got.ExitStatus != 137 || got.Pid != 4194000 || time.Since(got.ExitedAt.AsTime()).Abs() > time.Minute {
			t.Errorf("delete returns %v", got)
		}
	})
}

// deleteBinary runs `delete` as containerd does.
func deleteBinary(t *testing.T, n *node.Node, id, dir string) *taskapi.DeleteResponse {
	t.Helper()
	cmd := exec.Command(shimBinary(), "-namespace", node.Namespace, "-address", n.Address(), "-publish-binary", "", "-id", id, "-bundle", dir, "delete")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("delete: %v: %s", err, &stderr)
	}
	var resp taskapi.DeleteResponse
	if err := proto.Unmarshal(out, &resp); err != nil {
		t.Fatalf("delete answers %q: %v", out, err)
	}
	return &resp
}

func TestContract06TheProcessIsThereWhileTheTaskIsCreated(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	pid := b.task.Pid()
	net, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	if own, _ := os.Readlink("/proc/self/ns/net"); own == net {
		t.Error("the process has the host's network namespace")
	}
	// As CNI does: something goes into the namespace before the task starts.
	if out, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "ip", "link", "show", "lo").CombinedOutput(); err != nil && !errors.Is(err, exec.ErrNotFound) && !strings.Contains(string(out), "failed to execute ip") {
		t.Errorf("%v: %s", err, out)
	}
	b.mustStart(t)
	if b.exit(t) != 0 || b.task.Pid() != pid {
		t.Error("another process was started")
	}
}

func TestContract07TheShimMountsAndUnmountsTheRootfs(t *testing.T) {
	n := useNode(t)
	mounted := func(id string) bool {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(data), n.Bundle(id)+"/rootfs ")
	}
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	if !mounted(b.ID()) {
		t.Error("not mounted")
	}
	b.mustStart(t)
	b.exit(t)
	b.delete(t)
	if mounted(b.ID()) {
		t.Error("still mounted after Delete")
	}
	failed := container(t, n, app(t, n, "nostart.wasm"), args("/app.wasm"))
	if err := failed.create(); err == nil || mounted(failed.ID()) {
		t.Errorf("after a failed Create (%v) mounted is %t", err, mounted(failed.ID()))
	}
	t.Run("an absolute root.path", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "app.wasm"), guest(t, "hello.wasm"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := n.Ctr(t.Context(), "run", "--rm", "--runtime="+node.Runtime, "--rootfs", dir, newID(t), "/app.wasm").CombinedOutput()
		if err != nil || string(out) != "hello\n" {
			t.Errorf("%v: %q", err, out)
		}
	})
}

func TestContract08OptionsOfAnUnknownTypeAreRefused(t *testing.T) {
	n := useNode(t)
	id := newID(t)
	r := start(t, n, id, bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm"))
	_, err := r.Create(n.Context(t.Context()), &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle, Options: &anypb.Any{TypeUrl: "made.up/Type", Value: []byte{1}}})
	wantError(t, errgrpc.ToNative(err), errdefs.ErrInvalidArgument, "made.up/Type")
	_, _ = r.Shutdown(n.Context(t.Context()), &taskapi.ShutdownRequest{ID: id})
}

func TestContract10ACreateBlocksNoOtherCall(t *testing.T) {
	n := newNode(t, options())
	b := container(t, n, app(t, n, "esbuild.wasm"), args("/app.wasm", "--version"))
	created := make(chan error, 1)
	go func() { created <- b.create() }()
	eventually(t, "the shim is there", func() bool {
		_, err := os.Stat(filepath.Join(n.Bundle(b.ID()), "bootstrap.json"))
		return err == nil
	})
	shim := shimClient(t, n, b.ID())
	calls := 0
	for done := false; !done; {
		select {
		case err := <-created:
			if err != nil {
				t.Error(err)
			}
			done = true
		default:
			began := time.Now()
			if _, err := shim.State(b.ctx, &taskapi.StateRequest{ID: b.ID()}); err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
				t.Error(err)
			}
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("State took %v", d)
			}
			calls++
			time.Sleep(50 * time.Millisecond)
		}
	}
	if calls < 10 {
		t.Errorf("only %d calls during the Create", calls)
	}
}

func TestContract12AStartInFlightOrDoneRejectsASecondOne(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	shim := shimClient(t, n, b.ID())
	oneOfEight(t, func() error {
		_, err := shim.Start(b.ctx, &taskapi.StartRequest{ID: b.ID()})
		return errgrpc.ToNative(err)
	})
}

// oneOfEight starts a process eight times at once, and wants one to succeed.
func oneOfEight(t *testing.T, start func() error) {
	t.Helper()
	errs := make(chan error)
	for range 8 {
		go func() { errs <- start() }()
	}
	started := 0
	for range 8 {
		if err := <-errs; err == nil {
			started++
		} else if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("error %v, want failed precondition", err)
		}
	}
	if started != 1 {
		t.Errorf("%d of 8 starts succeeded", started)
	}
}

func TestContract13CallsForAnUnknownContainerAndUnsupportedCalls(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	shim := reflect.ValueOf(shimClient(t, n, b.ID()))
	unsupported := []string{"Checkpoint"}
	for i := range shim.NumMethod() {
		method := shim.Type().Method(i)
		request := reflect.New(method.Type.In(2).Elem())
		call := func(id string) error {
			request.Elem().FieldByName("ID").SetString(id)
			out := shim.Method(i).Call([]reflect.Value{reflect.ValueOf(b.ctx), request})
			err, _ := out[1].Interface().(error)
			return errgrpc.ToNative(err)
		}
		switch method.Name {
		case "Connect", "Shutdown":
			if err := call("nobody"); err != nil {
				t.Errorf("%s: %v", method.Name, err)
			}
		case "Create":
		default:
			if err := call("nobody"); !errdefs.IsNotFound(err) {
				t.Errorf("%s of an unknown container: %v, want not found", method.Name, err)
			}
		}
		if slices.Contains(unsupported, method.Name) {
			if err := call(b.ID()); !errdefs.IsNotImplemented(err) {
				t.Errorf("%s: %v, want not implemented", method.Name, err)
			}
		}
	}
}

func TestContract14Wait(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "sleep", "300ms", "exit", "4"))
	b.mustCreate(t)
	shim := shimClient(t, n, b.ID())
	statuses := make(chan uint32)
	wait := func() {
		resp, err := shim.Wait(b.ctx, &taskapi.WaitRequest{ID: b.ID()})
		if err != nil {
			t.Error(err)
		}
		statuses <- resp.GetExitStatus()
	}
	for range 10 {
		go wait()
	}
	cancelled, cancel := context.WithTimeout(b.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := shim.Wait(cancelled, &taskapi.WaitRequest{ID: b.ID()}); err == nil {
		t.Error("a cancelled Wait returned no error")
	}
	b.mustStart(t)
	for range 10 {
		go wait()
	}
	for range 20 {
		if got := <-statuses; got != 4 {
			t.Errorf("Wait: %d, want 4", got)
		}
	}
	go wait()
	if got := <-statuses; got != 4 {
		t.Errorf("Wait after the exit: %d, want 4", got)
	}
	if _, err := shim.Delete(b.ctx, &taskapi.DeleteRequest{ID: b.ID()}); err != nil {
		t.Fatal(err)
	}
	_, err := shim.Wait(b.ctx, &taskapi.WaitRequest{ID: b.ID()})
	wantError(t, errgrpc.ToNative(err), errdefs.ErrNotFound)
}

func TestContract15Kill(t *testing.T) {
	n := useNode(t)
	t.Run("of a created task yields an exit", func(t *testing.T) {
		rec := record(t, n)
		b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := b.exit(t); got != 137 {
			t.Errorf("exit status %d", got)
		}
		if got, want := names(rec.of(b.ID(), 2)), []string{"create", "exit"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
		b.delete(t)
	})
	t.Run("after the exit finds nothing", func(t *testing.T) {
		b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		b.mustStart(t)
		b.exit(t)
		wantError(t, b.task.Kill(b.ctx, syscall.SIGTERM), errdefs.ErrNotFound)
	})
	t.Run("of all ends that container and no other", func(t *testing.T) {
		one, other := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm")), container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		for _, b := range []*box{one, other} {
			b.mustCreate(t)
			b.mustStart(t)
		}
		if err := one.task.Kill(one.ctx, syscall.SIGKILL, containerd.WithKillAll); err != nil {
			t.Fatal(err)
		}
		one.exit(t)
		if !alive(int(other.task.Pid())) {
			t.Error("the other container is dead")
		}
	})
	t.Run("with a signal that does not exist", func(t *testing.T) {
		b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		wantError(t, b.task.Kill(b.ctx, syscall.Signal(99)), errdefs.ErrInvalidArgument, "99")
	})
}

func TestContract16Signals(t *testing.T) {
	n := useNode(t)
	for name, c := range map[string][]string{
		"idle":                          {"probe.wasm", "idle"},
		"spinning without host calls":   {"spin.wasm"},
		"spinning with garbage to sort": {"probe.wasm", "garbage"},
		"waiting for input":             {"probe.wasm", "stdin"},
	} {
		for sig, want := range map[syscall.Signal]uint32{
			syscall.SIGTERM: 143, syscall.SIGKILL: 137, syscall.SIGINT: 130, syscall.SIGHUP: 129, syscall.SIGQUIT: 131, syscall.SIGUSR1: 138,
		} {
			t.Run(fmt.Sprintf("%s, %v", name, sig), func(t *testing.T) {
				b := container(t, n, app(t, n, c[0]), args(append([]string{"/app.wasm"}, c[1:]...)...), oci.WithCPUs("0"))
				b.mustCreate(t, true)
				b.mustStart(t)
				time.Sleep(50 * time.Millisecond)
				began := time.Now()
				if err := b.task.Kill(b.ctx, sig); err != nil {
					t.Fatal(err)
				}
				if got := b.exit(t); got != want {
					t.Errorf("exit status %d, want %d", got, want)
				}
				if d := time.Since(began); d > 5*time.Second {
					t.Errorf("took %v", d)
				}
				b.stdin.Close()
			})
		}
	}
	t.Run("one that ends nothing by default", func(t *testing.T) {
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		b.mustStart(t)
		for _, sig := range []syscall.Signal{syscall.SIGWINCH, syscall.SIGURG, syscall.SIGCHLD, syscall.SIGCONT, 0} {
			if err := b.task.Kill(b.ctx, sig); err != nil {
				t.Errorf("%v: %v", sig, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		if !alive(int(b.task.Pid())) {
			t.Error("it is dead")
		}
	})
}

func TestContract17Delete(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	b.mustStart(t)
	shim := shimClient(t, n, b.ID())
	_, err := shim.Delete(b.ctx, &taskapi.DeleteRequest{ID: b.ID()})
	wantError(t, errgrpc.ToNative(err), errdefs.ErrFailedPrecondition)
	if s, err := b.task.Status(b.ctx); err != nil || s.Status != containerd.Running || !alive(int(b.task.Pid())) {
		t.Errorf("after a refused Delete: %v, %v", s, err)
	}
	if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	if _, err := shim.Delete(b.ctx, &taskapi.DeleteRequest{ID: b.ID()}); err != nil {
		t.Fatal(err)
	}
	_, err = shim.Delete(b.ctx, &taskapi.DeleteRequest{ID: b.ID()})
	wantError(t, errgrpc.ToNative(err), errdefs.ErrNotFound)
}

func TestContract18PidsAndConnectWorkAfterARestartOfContainerd(t *testing.T) {
	n := newNode(t, options())
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin", "exit", "6"))
	b.mustCreate(t, true)
	b.mustStart(t)
	pid := b.task.Pid()
	if err := n.Halt(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := n.Client.LoadContainer(b.ctx, b.ID())
	if err != nil {
		t.Fatal(err)
	}
	task, err := c.Task(b.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := task.Pids(b.ctx)
	if err != nil || len(pids) != 1 || pids[0].Pid != pid {
		t.Errorf("pids %v, %v: want %d", pids, err, pid)
	}
	if got := shimPID(t, n, b.ID()); !alive(got) {
		t.Errorf("shim pid %d", got)
	}
	exit, err := task.Wait(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.CloseIO(b.ctx, containerd.WithStdinCloser); err != nil {
		t.Fatal(err)
	}
	b.stdin.Close()
	if status := <-exit; status.ExitCode() != 6 {
		t.Errorf("exit status %d, %v", status.ExitCode(), status.Error())
	}
	if _, err := task.Delete(b.ctx); err != nil {
		t.Error(err)
	}
}

func TestContract19Shutdown(t *testing.T) {
	n := useNode(t)
	id := newID(t)
	r := start(t, n, id, bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm"))
	ctx := n.Context(t.Context())
	if _, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle}); err != nil {
		t.Fatal(err)
	}
	conn, err := r.Connect(ctx, &taskapi.ConnectRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	if !alive(int(conn.ShimPid)) || !alive(int(conn.TaskPid)) {
		t.Fatal("a Shutdown ended a shim that has a container")
	}
	if _, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	_, _ = r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	_, _ = r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	eventually(t, "the shim ends, and its socket goes", func() bool {
		_, err := os.Stat(strings.TrimPrefix(r.address, "unix://"))
		return os.IsNotExist(err) && !alive(int(conn.ShimPid))
	})
}

func TestContract20State(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin", "exit", "8"))
	b.mustCreate(t, true)
	shim := shimClient(t, n, b.ID())
	state := func(want tasktypes.Status) *taskapi.StateResponse {
		t.Helper()
		s, err := shim.State(b.ctx, &taskapi.StateRequest{ID: b.ID()})
		if err != nil {
			t.Fatal(err)
		}
		cfg := b.task.IO().Config()
		if s.Status != want || s.ID != b.ID() || s.Bundle != n.Bundle(b.ID()) || s.Pid != b.task.Pid() || s.Terminal ||
			s.Stdin != cfg.Stdin || s.Stdout != cfg.Stdout || s.Stderr != cfg.Stderr {
			t.Errorf("state %v, want %v", s, want)
		}
		return s
	}
	if s := state(tasktypes.Status_CREATED); s.ExitedAt != nil {
		t.Errorf("exited at %v", s.ExitedAt)
	}
	b.mustStart(t)
	state(tasktypes.Status_RUNNING)
	b.stdin.Close()
	b.closeStdin(t)
	b.exit(t)
	if s := state(tasktypes.Status_STOPPED); s.ExitStatus != 8 || s.ExitedAt == nil {
		t.Errorf("exit status %d at %v", s.ExitStatus, s.ExitedAt)
	}
}

// fifos are the ends of a client that comes and goes.
func fifos(t *testing.T) cio.Config {
	t.Helper()
	dir := t.TempDir()
	c := cio.Config{Stdin: filepath.Join(dir, "in"), Stdout: filepath.Join(dir, "out"), Stderr: filepath.Join(dir, "err")}
	for _, p := range []string{c.Stdin, c.Stdout, c.Stderr} {
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// readFifos are some that are read until the test ends. What nobody reads holds up an
// exit for a second.
func readFifos(t *testing.T) cio.Config {
	t.Helper()
	c := fifos(t)
	for _, p := range []string{c.Stdout, c.Stderr} {
		f, err := os.OpenFile(p, os.O_RDWR, 0) // no end of file when the shim closes its own
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, f)
		}()
		t.Cleanup(func() {
			f.Close()
			<-done
		})
	}
	return c
}

func TestContract26AClientThatDetachesIsNoEndOfFile(t *testing.T) {
	n := useNode(t)
	cfg := fifos(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin"))
	b.mustCreateWith(t, cfg)
	b.mustStart(t)
	out, err := os.Open(cfg.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, line := range []string{"one\n", "two\n"} {
		w, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
		w.Close() // detached
		time.Sleep(100 * time.Millisecond)
		if !alive(int(b.task.Pid())) {
			t.Fatal("the guest took it for the end")
		}
	}
	b.closeStdin(t)
	if got := b.exit(t); got != 0 {
		t.Errorf("exit status %d", got)
	}
	got, err := io.ReadAll(out)
	if want := "stdin: one\nstdin: two\nlines: 2\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	b.delete(t)
}

func TestContract27NoOutputIsLost(t *testing.T) {
	n := useNode(t)
	const size = 8 << 20
	t.Run("8 MiB, Delete at once after Wait", func(t *testing.T) {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(size)))
		b.mustCreate(t)
		b.mustStart(t)
		if got := b.exit(t); got != 0 {
			t.Errorf("exit status %d", got)
		}
		b.delete(t)
		if got := len(b.stdout.String()); got != size {
			t.Errorf("%d bytes, want %d", got, size)
		}
	})
	t.Run("a client that goes away breaks no pipe", func(t *testing.T) {
		cfg := fifos(t)
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "print", "a", "stdin", "print", "b"))
		b.mustCreateWith(t, cfg)
		out, err := os.Open(cfg.Stdout)
		if err != nil {
			t.Fatal(err)
		}
		b.mustStart(t)
		buf := make([]byte, 2)
		if _, err := io.ReadFull(out, buf); err != nil || string(buf) != "a\n" {
			t.Fatalf("%q, %v", buf, err)
		}
		out.Close() // gone
		b.closeStdin(t)
		if got := b.exit(t); got != 0 {
			t.Errorf("exit status %d", got)
		}
		// And what was written meanwhile is there for one that comes back.
		out, err = os.OpenFile(cfg.Stdout, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		got, err := io.ReadAll(out)
		if want := "lines: 0\nb\n"; err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
		b.delete(t)
	})
	t.Run("into a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(file, []byte("before\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
		b.mustCreateWith(t, cio.Config{Stdout: file})
		b.mustStart(t)
		b.exit(t)
		if data, err := os.ReadFile(file); err != nil || string(data) != "before\nhello\n" {
			t.Errorf("%q, %v", data, err)
		}
		b.delete(t)
	})
}

func TestContract33AShimThatIsKilledTakesItsContainersAlong(t *testing.T) {
	for _, started := range []bool{false, true} {
		t.Run(map[bool]string{false: "while created", true: "while running"}[started], func(t *testing.T) {
			n := newNode(t, options())
			img := app(t, n, "spin.wasm")
			before := traces(t, n)
			rec := record(t, n)
			b := container(t, n, img, args("/app.wasm"))
			b.mustCreate(t)
			other := container(t, n, img, args("/app.wasm"))
			other.mustCreate(t)
			if started {
				b.mustStart(t)
				time.Sleep(100 * time.Millisecond)
			}
			pid := int(b.task.Pid())
			if err := syscall.Kill(shimPID(t, n, b.ID()), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			eventually(t, "the instance process dies", func() bool { return !alive(pid) })
			// containerd's `delete` has cleaned up when it tells of the exit.
			var exit *eventstypes.TaskExit
			eventually(t, "containerd tells of the exit", func() bool {
				for _, e := range rec.of(b.ID(), 1) {
					if e, ok := e.(*eventstypes.TaskExit); ok {
						exit = e
					}
				}
				return exit != nil
			})
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
			if exit.ExitStatus != 137 || int(exit.Pid) != pid {
				t.Errorf("exit %v", exit)
			}
			if !alive(int(other.task.Pid())) {
				t.Error("the other container is dead")
			}
			other.remove()
			b.remove()
			leaves(t, n, before)
		})
	}
	t.Run("delete may be called again, with the bundle half gone", func(t *testing.T) {
		n := useNode(t)
		dir := bundle(t, "half", "", "")
		for range 2 {
			if got := deleteBinary(t, n, "half", dir); got.ExitStatus != 137 {
				t.Errorf("%v", got)
			}
		}
	})
	t.Run("delete leaves a container alone that has a shim", func(t *testing.T) {
		n := useNode(t)
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		b.mustStart(t)
		deleteBinary(t, n, b.ID(), n.Bundle(b.ID()))
		if !alive(int(b.task.Pid())) {
			t.Error("it is dead")
		}
	})
}

func TestContract33AnInstanceProcessThatIsKilled(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	b.mustStart(t)
	if err := syscall.Kill(int(b.task.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := b.exit(t); got != 137 {
		t.Errorf("exit status %d", got)
	}
	b.delete(t)
	if got, want := names(rec.of(b.ID(), 4)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestContract34NothingIsLeftTheMomentDeleteReturns(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "spin.wasm")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, 0} {
		name, guestName := "ended by "+sig.String(), "spin.wasm"
		if sig == 0 {
			name, guestName = "ended by itself", "hello.wasm"
		}
		t.Run(name, func(t *testing.T) {
			img := img
			if sig == 0 {
				img = app(t, n, guestName)
			}
			before := traces(t, n)
			b := container(t, n, img, args("/app.wasm"))
			b.mustCreate(t)
			shim := shimClient(t, n, b.ID())
			b.mustStart(t)
			if sig != 0 {
				if err := b.task.Kill(b.ctx, sig); err != nil {
					t.Fatal(err)
				}
			}
			b.exit(t)
			if _, err := shim.Delete(b.ctx, &taskapi.DeleteRequest{ID: b.ID()}); err != nil {
				t.Fatal(err)
			}
			// No sleep: of the container only its shim is left, with its socket, the
			// bundle and the client's FIFOs.
			for _, s := range traces(t, n) {
				if slices.Contains(before, s) || strings.HasPrefix(s, n.Dir+"/") || strings.Contains(s, "-id "+b.ID()+" ") {
					continue
				}
				t.Errorf("left behind by Delete: %s", s)
			}
			b.remove()
			leaves(t, n, before)
		})
	}
}
