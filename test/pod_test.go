package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// groupAnnotation has containers of the same value share a shim, as it does under
// containerd's own runc shim.
const groupAnnotation = "io.containerd.runc.v2.group"

// A pod is what CRI makes of one, as far as a shim sees it: a pause container, and
// others in its namespaces and on its shim.
type pod struct {
	pause      *box
	containers map[string]*box
}

// shims are the processes of this node that serve a task service.
func shims(t *testing.T, n *node.Node) (pids []string) {
	t.Helper()
	for _, s := range traces(t, n) {
		if f := strings.Fields(s); f[0] == "process" && slices.Contains(f, "-namespace") && !slices.Contains(f, "start") {
			pids = append(pids, f[1])
		}
	}
	return pids
}

func startPod(t *testing.T, n *node.Node) *pod {
	t.Helper()
	img := image(t, n, "pod", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("spin.wasm", guest(t, "spin.wasm")),
		node.Program("busybox", guest(t, "busybox")), node.Regular("tmp/x", nil))
	group := fmt.Sprintf("group-%d", rand.Uint32())
	grouped := oci.WithAnnotations(map[string]string{groupAnnotation: group})
	p := &pod{containers: map[string]*box{}}
	p.pause = container(t, n, img, args("/busybox", "sleep", "1000"), grouped)
	p.pause.mustCreate(t)
	p.pause.mustStart(t)
	joined := func() []oci.SpecOpts {
		opts := []oci.SpecOpts{grouped}
		for _, ns := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
			file := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}[ns]
			if file == "" {
				file = string(ns)
			}
			opts = append(opts, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: ns, Path: fmt.Sprintf("/proc/%d/ns/%s", p.pause.task.Pid(), file)}))
		}
		return opts
	}()
	for name, run := range map[string][]string{
		"wasm": {"/app.wasm", "idle"}, "spin": {"/spin.wasm"}, "sidecar": {"/busybox", "sleep", "1000"},
	} {
		b := container(t, n, img, append([]oci.SpecOpts{args(run...)}, joined...)...)
		b.mustCreate(t)
		b.mustStart(t)
		p.containers[name] = b
	}
	return p
}

func TestContract30APodIsOneShim(t *testing.T) {
	n := useNode(t)
	for _, order := range [][]string{
		{"wasm", "spin", "sidecar", "pause"}, {"pause", "sidecar", "spin", "wasm"}, {"sidecar", "pause", "wasm", "spin"},
	} {
		t.Run(strings.Join(order, ", "), func(t *testing.T) {
			before := traces(t, n)
			others := shims(t, n)
			p := startPod(t, n)
			mine := slices.DeleteFunc(shims(t, n), func(pid string) bool { return slices.Contains(others, pid) })
			if len(mine) != 1 {
				t.Errorf("shims %v, want one", mine)
			}
			for name, b := range p.containers {
				for _, ns := range []string{"net", "ipc", "uts"} {
					if got, want := namespaceOf(t, b.task.Pid(), ns), namespaceOf(t, p.pause.task.Pid(), ns); got != want {
						t.Errorf("%s: %s namespace %s, want the pod's %s", name, ns, got, want)
					}
				}
				if got, other := namespaceOf(t, b.task.Pid(), "pid"), namespaceOf(t, p.pause.task.Pid(), "pid"); got == other {
					t.Errorf("%s has the pod's pid namespace", name)
				}
			}
			left := p.containers
			left["pause"] = p.pause
			for _, name := range order {
				b := left[name]
				delete(left, name)
				if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if got := b.exit(t); got != 137 {
					t.Errorf("%s: exit status %d", name, got)
				}
				b.delete(t)
				for other, b := range left {
					if !alive(int(b.task.Pid())) {
						t.Errorf("%s died with %s", other, name)
					}
				}
				// One that is there yet goes on as before.
				for _, b := range left {
					if _, err := b.task.Status(b.ctx); err != nil {
						t.Error(err)
					}
				}
				b.remove()
			}
			leaves(t, n, before)
		})
	}
	t.Run("the shim killed with all its containers", func(t *testing.T) {
		before := traces(t, n)
		p := startPod(t, n)
		p.containers["pause"] = p.pause
		if err := syscall.Kill(shimPID(t, n, p.pause.ID()), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for name, b := range p.containers {
			eventually(t, name+" is dead", func() bool { return !alive(int(b.task.Pid())) })
		}
		for name, b := range p.containers {
			eventually(t, name+"'s bundle is gone", func() bool {
				_, err := os.Stat(filepath.Join(n.Bundle(b.ID()), "config.json"))
				return os.IsNotExist(err)
			})
			b.remove()
		}
		leaves(t, n, before)
	})
}

func TestContract30ExecsAndEventsOfAPodsContainersAreTheirOwn(t *testing.T) {
	n := useNode(t)
	p := startPod(t, n)
	for name, run := range map[string][]string{"wasm": {"/app.wasm", "print", "x"}, "spin": {"/app.wasm", "print", "x"}, "sidecar": {"/busybox", "echo", "x"}} {
		e, status := p.containers[name].runExec(t, "same-id", nil, run...)
		if status != 0 || e.stdout.String() != "x\n" {
			t.Errorf("%s: %d, %q", name, status, e.stdout)
		}
	}
	// A Linux program among modules, and the other way round.
	e, err := p.containers["wasm"].exec(t, "linux", nil, "/busybox", "echo")
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, e.Start(p.pause.ctx), nil, "/busybox", "a Linux program")
}
