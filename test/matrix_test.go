package test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// versions are those of containerd that the shim is for; the empty one is the
// pinned one, which everything else is tested under.
var versions = []string{"1.7", "2.0", "2.1", "2.2", "2.3", ""}

func TestContract35AllVersionsOfContainerdInUse(t *testing.T) {
	for _, version := range versions {
		name := version
		if name == "" {
			name = "2.4"
		}
		t.Run(name, func(t *testing.T) {
			opts := options()
			opts.Version = version
			n := newNode(t, opts)
			v, err := n.Client.Version(t.Context())
			if err != nil || !strings.HasPrefix(strings.TrimPrefix(v.Version, "v"), name+".") {
				t.Fatalf("containerd %s, %v, want %s", v.Version, err, name)
			}
			img := app(t, n, "probe.wasm")
			spin := app(t, n, "spin.wasm")
			mixed := image(t, n, "mixed", node.Regular("app.wasm", guest(t, "spin.wasm")), node.Program("busybox", guest(t, "busybox")))
			before := traces(t, n)
			var groups []string // that had a shim
			group := func(annotation string) oci.SpecOpts {
				groups = append(groups, newID(t))
				return oci.WithAnnotations(map[string]string{annotation: groups[len(groups)-1]})
			}

			t.Run("the main job", func(t *testing.T) {
				for _, runtime := range []string{node.Runtime, shimBinary()} {
					id := newID(t)
					groups = append(groups, id)
					cmd := n.Ctr(t.Context(), "run", "--rm", "--runtime="+runtime, img.Name(), id, "/app.wasm", "args", "exit", "7")
					got, err := cmd.CombinedOutput()
					if want := "args: [\"/app.wasm\" \"args\" \"exit\" \"7\"]\n"; !strings.HasSuffix(string(got), want) || cmd.ProcessState.ExitCode() != 7 {
						t.Errorf("%s: printed %q, want %q; %v, want exit status 7", runtime, got, want, err)
					}
				}
			})
			t.Run("a module that is a layer", func(t *testing.T) {
				img := artifact(t, n, layered(linuxPlatform, moduleOf(guest(t, "probe.wasm"))))
				id := newID(t)
				groups = append(groups, id)
				if out, status := ctrRun(t, n, img.Name(), id, "app", "args"); status != 0 || !strings.HasSuffix(out, "args: [\"app\" \"args\"]\n") {
					t.Errorf("exit status %d, printed %q", status, out)
				}
				b := bare(t, n, artifact(t, n, cncf(moduleOf(guest(t, "trap.wasm")))), "app")
				groups = append(groups, b.ID())
				if got := b.live(t); got != 134 {
					t.Errorf("exit status %d, want 134", got)
				}
			})
			t.Run("kill and the events", func(t *testing.T) {
				rec := record(t, n)
				b := container(t, n, spin, args("/app.wasm"))
				groups = append(groups, b.ID())
				b.mustCreate(t)
				b.mustStart(t)
				if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if got := b.exit(t); got != 143 {
					t.Errorf("exit status %d, want 143", got)
				}
				if got := b.delete(t).ExitCode(); got != 143 {
					t.Errorf("delete says %d, want 143", got)
				}
				if got, want := names(rec.of(b.ID(), 4)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
					t.Errorf("events %v, want %v", got, want)
				}
			})
			t.Run("an error of Create says why", func(t *testing.T) {
				b := container(t, n, app(t, n, "nostart.wasm"), args("/app.wasm"))
				groups = append(groups, b.ID())
				wantError(t, b.create(), errdefs.ErrInvalidArgument, "/app.wasm", "_start")
			})
			t.Run("a group shares a shim, each is deleted alone", func(t *testing.T) {
				pod := group("io.kubernetes.cri.sandbox-id")
				var boxes []*box
				for _, what := range []oci.SpecOpts{args("/app.wasm"), args("/busybox", "sleep", "1000"), args("/app.wasm")} {
					b := container(t, n, mixed, what, pod)
					b.mustCreate(t)
					b.mustStart(t)
					boxes = append(boxes, b)
				}
				pid := shimOf(t, n, boxes[0].ID())
				for _, b := range boxes[1:] {
					if got := shimOf(t, n, b.ID()); got != pid {
						t.Errorf("shim %d and %d, want one", pid, got)
					}
				}
				for i, b := range boxes { // the one that started it first
					if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					b.exit(t)
					b.delete(t)
					for _, other := range boxes[i+1:] {
						if !alive(int(other.task.Pid())) || !alive(pid) {
							t.Fatalf("a delete touched %s or its shim", other.ID())
						}
					}
				}
				eventually(t, "the shim ends with the last one", func() bool { return !alive(pid) })
			})
			t.Run("a group whose shim is killed", func(t *testing.T) {
				rec := record(t, n)
				pod := group("io.containerd.runc.v2.group")
				var boxes []*box
				for range 2 {
					b := container(t, n, spin, args("/app.wasm"), pod)
					b.mustCreate(t)
					b.mustStart(t)
					boxes = append(boxes, b)
				}
				if err := syscall.Kill(shimOf(t, n, boxes[0].ID()), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				for _, b := range boxes {
					eventually(t, "containerd tells of the exit", func() bool { return slices.Contains(names(rec.of(b.ID(), 3)), "exit") })
					if alive(int(b.task.Pid())) {
						t.Errorf("%s lives", b.ID())
					}
					b.remove()
				}
			})
			last := container(t, n, spin, args("/app.wasm"))
			groups = append(groups, last.ID())
			var sockets []string // now: an upgrade has others
			for _, g := range groups {
				sockets = append(sockets, socketOf(t, n, g))
			}
			t.Run("a restart and an upgrade while a task runs", func(t *testing.T) {
				b := last
				b.mustCreate(t)
				b.mustStart(t)
				pid := b.task.Pid()
				for what, restart := range map[string]func() error{
					"killed": func() error { return errors.Join(n.Halt(syscall.SIGKILL), n.Boot(t.Context())) },
					"ended":  func() error { return errors.Join(n.Halt(syscall.SIGTERM), n.Boot(t.Context())) },
				} {
					if err := restart(); err != nil {
						t.Fatal(err)
					}
					if b.reload(t, false); b.task.Pid() != pid || !b.running(t) {
						t.Fatalf("containerd %s: pid %d, want %d; running %t", what, b.task.Pid(), pid, b.running(t))
					}
				}
				if err := n.Upgrade(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
				if b.reload(t, false); b.task.Pid() != pid || !b.running(t) {
					t.Fatalf("upgraded: pid %d, want %d; running %t", b.task.Pid(), pid, b.running(t))
				}
				if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if got := b.exit(t); got != 143 {
					t.Errorf("exit status %d, want 143", got)
				}
				b.delete(t)
			})
			leaves(t, n, before)
			for _, path := range sockets {
				if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("left behind: %s, %v", path, err)
				}
			}
		})
	}
}

// socketOf is the socket of a group's shim.
func socketOf(t *testing.T, n *node.Node, group string) string {
	t.Helper()
	address, err := shim.CreateSocketAddress(n.Context(t.Context()), n.SocketDir(), n.Address(), group, false)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(address, "unix://")
}

func (b *box) running(t *testing.T) bool {
	t.Helper()
	s, err := b.task.Status(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s.Status == containerd.Running
}

// shimOf is the pid of the shim of a container, under any containerd.
func shimOf(t *testing.T, n *node.Node, id string) int {
	t.Helper()
	boot := struct{ Address string }{}
	data, err := os.ReadFile(filepath.Join(n.Bundle(id), "bootstrap.json"))
	if err == nil {
		err = json.Unmarshal(data, &boot)
	} else if data, err = os.ReadFile(filepath.Join(n.Bundle(id), "address")); err == nil {
		boot.Address = string(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", strings.TrimPrefix(boot.Address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	resp, err := taskapi.NewTTRPCTaskClient(client).Connect(n.Context(t.Context()), &taskapi.ConnectRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return int(resp.ShimPid)
}
