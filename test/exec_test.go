package test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// An execution is an exec in a box.
type execution struct {
	containerd.Process
	stdout, stderr *buffer
}

// exec adds a process to the container; it runs what a shell would, with the
// environment of the first process.
func (b *box) exec(t *testing.T, id string, change func(*specs.Process), args ...string) (*execution, error) {
	t.Helper()
	spec, err := b.Spec(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	process := *spec.Process
	process.Args = args
	if change != nil {
		change(&process)
	}
	e := &execution{stdout: &buffer{}, stderr: &buffer{}}
	e.Process, err = b.task.Exec(b.ctx, id, &process, cio.NewCreator(cio.WithStreams(nil, e.stdout, e.stderr), cio.WithFIFODir(b.node.Dir+"/fifo")))
	if e.Process != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(b.node.Context(context.Background()), 10*time.Second)
			defer cancel()
			if b.node.Client != nil {
				_, _ = e.Delete(ctx, containerd.WithProcessKill)
			}
		})
	}
	return e, err
}

// processSpec is the first process's, as an exec request has it.
func processSpec(t *testing.T, b *box) *anypb.Any {
	t.Helper()
	spec, err := b.Spec(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	a, err := typeurl.MarshalAnyToProto(spec.Process)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// finish waits for the end of an exec that has been started, and deletes it.
func (e *execution) finish(t *testing.T, ctx context.Context) uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ch, err := e.Wait(ctx)
	if err != nil {
		t.Fatalf("wait for exec: %v", err)
	}
	status := <-ch
	if err := status.Error(); err != nil {
		t.Fatalf("wait for exec: %v", err)
	}
	if _, err := e.Delete(ctx); err != nil {
		t.Fatalf("delete exec: %v", err)
	}
	return status.ExitCode()
}

// runExec sees an exec through its whole life.
func (b *box) runExec(t *testing.T, id string, change func(*specs.Process), args ...string) (*execution, uint32) {
	t.Helper()
	e, err := b.exec(t, id, change, args...)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatalf("start exec: %v", err)
	}
	return e, e.finish(t, b.ctx)
}

// idle is a running container of the probe, with a tmpfs at /scratch and a Linux
// program beside it.
func idle(t *testing.T, n *node.Node, opts ...oci.SpecOpts) *box {
	t.Helper()
	img := image(t, n, "exec", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("hello.wasm", guest(t, "hello.wasm")),
		node.Regular("spin.wasm", guest(t, "spin.wasm")), node.Regular("etc/motd", []byte("of the image\n")), node.Program("hello", guest(t, "hello-static")))
	scratch := oci.WithMounts([]specs.Mount{{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777"}}})
	b := container(t, n, img, append([]oci.SpecOpts{args("/app.wasm", "write", "/scratch/init", "by init", "idle"), scratch, oci.WithEnv([]string{"A=1"})}, opts...)...)
	b.mustCreate(t)
	b.mustStart(t)
	return b
}

func TestContract29AnExecRunsAnotherModuleInTheContainer(t *testing.T) {
	n := useNode(t)
	b := idle(t, n)
	eventually(t, "the first process has written", func() bool {
		e, status := b.runExec(t, "look", nil, "/app.wasm", "cat", "/scratch/init")
		return status == 0 && e.stdout.String() == "by init"
	})
	t.Run("another module, with its own arguments, environment, directory and exit status", func(t *testing.T) {
		e, status := b.runExec(t, "probe", func(p *specs.Process) {
			p.Cwd, p.Env = "/etc", append(p.Env, "B=2")
		}, "../app.wasm", "args", "env", "cwd", "cat", "motd", "stderr", "to stderr", "exit", "7")
		if status != 7 {
			t.Errorf("exit status %d", status)
		}
		for _, want := range []string{`args: ["../app.wasm" "args"`, "env: A=1\n", "env: B=2\n", "cwd: /etc\n", "of the image\n"} {
			if !strings.Contains(e.stdout.String(), want) {
				t.Errorf("stdout %q: no %q", e.stdout, want)
			}
		}
		if e.stderr.String() != "to stderr\n" {
			t.Errorf("stderr %q", e.stderr)
		}
		if e, status := b.runExec(t, "hello", nil, "/hello.wasm"); status != 0 || e.stdout.String() != "hello\n" {
			t.Errorf("%q, %d", e.stdout, status)
		}
	})
	t.Run("the same files, namespaces and cgroup", func(t *testing.T) {
		b.runExec(t, "write", nil, "/app.wasm", "write", "/scratch/exec", "by exec", "write", "/written", "too")
		e, _ := b.runExec(t, "read", nil, "/app.wasm", "cat", "/scratch/exec", "cat", "/written")
		if e.stdout.String() != "by exectoo" {
			t.Errorf("%q", e.stdout)
		}
		e, err := b.exec(t, "stay", nil, "/app.wasm", "idle")
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		for _, ns := range []string{"net", "ipc", "uts", "pid", "cgroup"} {
			if got, want := namespaceOf(t, e.Pid(), ns), namespaceOf(t, b.task.Pid(), ns); got != want {
				t.Errorf("%s namespace %s, want %s", ns, got, want)
			}
		}
		if got, want := procFile(t, e.Pid(), "cgroup"), procFile(t, b.task.Pid(), "cgroup"); got != want {
			t.Errorf("cgroup\n%s, want\n%s", got, want)
		}
		for _, field := range []string{"CapBnd", "CapEff", "NoNewPrivs"} {
			if got, want := statusField(t, e.Pid(), field), statusField(t, b.task.Pid(), field); got != want {
				t.Errorf("%s %s, want %s", field, got, want)
			}
		}
		if got, want := mountsOf(t, e.Pid()), mountsOf(t, b.task.Pid()); !slices.Equal(got, want) {
			t.Errorf("mounts %q, want %q", got, want)
		}
		pids, err := b.task.Pids(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) != 2 {
			t.Errorf("pids %v", pids)
		}
		if err := e.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := e.finish(t, b.ctx); got != 143 {
			t.Errorf("exit status %d", got)
		}
	})
	t.Run("its own user", func(t *testing.T) {
		_, status := b.runExec(t, "user", func(p *specs.Process) { p.User = specs.User{UID: 1000, GID: 1000} }, "/app.wasm", "write", "/hello.wasm", "x")
		if status == 0 {
			t.Error("wrote a file of root")
		}
	})
	t.Run("what is refused", func(t *testing.T) {
		for _, c := range []struct {
			name, want string
			change     func(*specs.Process)
			args       []string
		}{
			{"a Linux program", "a Linux program, not a WebAssembly module", nil, []string{"/hello"}},
			{"a missing module", "/none.wasm: no such file", nil, []string{"/none.wasm"}},
			{"not a module", "not a WebAssembly module", nil, []string{"/etc/motd"}},
			{"a working directory that is not there", "/none", func(p *specs.Process) { p.Cwd = "/none" }, []string{"/app.wasm"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				e, err := b.exec(t, "refused", c.change, c.args...)
				if err != nil {
					t.Fatal(err)
				}
				wantError(t, e.Start(b.ctx), errdefs.ErrInvalidArgument, c.want)
				if _, err := e.Delete(b.ctx); err != nil {
					t.Errorf("delete: %v", err)
				}
			})
		}
		for _, c := range []struct {
			name, want string
			change     func(*specs.Process)
			args       []string
		}{
			{"no arguments", "args is empty", nil, nil},
			{"a relative working directory", `"etc"`, func(p *specs.Process) { p.Cwd = "etc" }, []string{"/app.wasm"}},
		} {
			_, err := b.exec(t, "bad", c.change, c.args...)
			wantError(t, err, errdefs.ErrInvalidArgument, c.want)
		}
		if status, err := b.task.Status(b.ctx); err != nil || status.Status != containerd.Running {
			t.Errorf("the container is %v, %v", status.Status, err)
		}
	})
	t.Run("a duplicate id", func(t *testing.T) {
		e, err := b.exec(t, "twice", nil, "/app.wasm", "idle")
		if err != nil {
			t.Fatal(err)
		}
		_, err = shimClient(t, n, b.ID()).Exec(b.ctx, &taskapi.ExecProcessRequest{ID: b.ID(), ExecID: "twice", Spec: processSpec(t, b)})
		wantError(t, errgrpc.ToNative(err), errdefs.ErrAlreadyExists, "twice")
		if err := e.Kill(b.ctx, syscall.SIGTERM); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("kill before start: %v", err)
		}
		if s, err := e.Delete(b.ctx); err != nil || s.ExitCode() != 0 {
			t.Errorf("delete of one not started: %v, %v", s, err)
		}
		if _, err := b.exec(t, "twice", nil, "/app.wasm"); err != nil {
			t.Errorf("once deleted the id is free: %v", err)
		}
	})
	t.Run("twenty at once", func(t *testing.T) {
		errs := make(chan error)
		for i := range 20 {
			go func() {
				e, err := b.exec(t, fmt.Sprintf("many-%d", i), nil, "/hello.wasm")
				if err == nil {
					err = e.Start(b.ctx)
				}
				if err == nil {
					if status := e.finish(t, b.ctx); status != 0 || e.stdout.String() != "hello\n" {
						err = fmt.Errorf("status %d, %q", status, e.stdout)
					}
				}
				errs <- err
			}()
		}
		for range 20 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestContract29NoExecOutlivesTheFirstProcess(t *testing.T) {
	for _, hostPID := range []bool{false, true} {
		t.Run(map[bool]string{false: "pid namespace", true: "host's pids"}[hostPID], func(t *testing.T) {
			n := useNode(t)
			before := traces(t, n)
			rec := record(t, n)
			var opts []oci.SpecOpts
			if hostPID {
				opts = append(opts, oci.WithHostNamespace(specs.PIDNamespace))
			}
			b := idle(t, n, opts...)
			execs := make([]*execution, 3)
			for i := range execs {
				var err error
				if execs[i], err = b.exec(t, fmt.Sprintf("e%d", i), nil, "/spin.wasm"); err != nil {
					t.Fatal(err)
				}
				if err := execs[i].Start(b.ctx); err != nil {
					t.Fatal(err)
				}
			}
			never, err := b.exec(t, "never-started", nil, "/spin.wasm")
			if err != nil {
				t.Fatal(err)
			}
			if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if got := b.exit(t); got != 143 {
				t.Errorf("exit status %d", got)
			}
			for _, e := range execs {
				if alive(int(e.Pid())) {
					t.Errorf("%s outlives the first process", e.ID())
				}
			}
			wantError(t, never.Start(b.ctx), errdefs.ErrFailedPrecondition, "has exited")
			if _, err := b.exec(t, "late", nil, "/spin.wasm"); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("exec after the exit: %v", err)
			}
			var order []string
			for _, e := range rec.of(b.ID(), 12) {
				switch e := e.(type) {
				case *eventstypes.TaskExecStarted:
					order = append(order, "started "+e.ExecID)
				case *eventstypes.TaskExecAdded:
					order = append(order, "added "+e.ExecID)
				case *eventstypes.TaskExit:
					order = append(order, "exit "+e.ID)
					if e.ID != b.ID() && e.ExitStatus != 137 {
						t.Errorf("%v", e)
					}
				}
			}
			for _, e := range execs {
				added, started, exit := slices.Index(order, "added "+e.ID()), slices.Index(order, "started "+e.ID()), slices.Index(order, "exit "+e.ID())
				if added < 0 || started < added || exit < started {
					t.Errorf("events of %s: %v", e.ID(), order)
				}
			}
			if len(order) == 0 || order[len(order)-1] != "exit "+b.ID() {
				t.Errorf("the container's exit is not the last: %v", order)
			}
			b.delete(t) // with the execs still there
			for _, e := range append(execs, never) {
				e.IO().Cancel()
				e.IO().Close() // removes the client's FIFOs
			}
			b.remove()
			leaves(t, n, before)
		})
	}
}
