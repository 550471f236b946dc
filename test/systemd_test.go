package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// systemdEnv says that there must be a systemd, as on the machine that
// `make test-cgroup2` runs on.
const systemdEnv = "TEST_SYSTEMD"

func haveSystemd(t *testing.T) bool {
	t.Helper()
	_, err := os.Stat("/run/systemd/system")
	if err != nil && os.Getenv(systemdEnv) != "" {
		t.Fatalf("%s is set, but there is no systemd: %v", systemdEnv, err)
	}
	return err == nil
}

// A scoped container is one whose cgroup systemd is to make.
type scoped struct {
	*box
	unit, slice string // what is to come of it
}

// scopes are the ways to ask for one: by option, with a path or without, and by a
// path of the shape that systemd's driver takes.
func scopes(t *testing.T, n *node.Node, guest string, opts ...oci.SpecOpts) map[string]func() *scoped {
	make := func(option bool, path, prefix, slice string) func() *scoped {
		return func() *scoped {
			t.Helper()
			withPath := func(_ context.Context, _ oci.Client, c *containers.Container, s *oci.Spec) error {
				if s.Linux.CgroupsPath = path; path != "" {
					s.Linux.CgroupsPath += c.ID
				}
				return nil
			}
			b := container(t, n, app(t, n, guest), append(slices.Clone(opts), withPath)...)
			s := &scoped{box: b, unit: prefix + "-" + b.ID() + ".scope", slice: slice}
			task, err := b.NewTask(b.ctx, cio.NewCreator(cio.WithStreams(nil, b.stdout, b.stderr), cio.WithFIFODir(filepath.Join(n.Dir, "fifo"))),
				func(_ context.Context, _ *containerd.Client, task *containerd.TaskInfo) error {
					if option {
						task.Options = &runcoptions.Options{SystemdCgroup: true}
					}
					return nil
				})
			if err != nil {
				t.Fatalf("create: %v", err)
			}
			b.task = task
			return s
		}
	}
	return map[string]func() *scoped{
		"by option":                make(true, "wz-test.slice:byoption:", "byoption", "wz-test.slice"),
		"by option alone":          make(true, "", "wazero", "system.slice"),
		"by the shape of the path": make(false, "wz.slice:nerdctl:", "nerdctl", "wz.slice"),
	}
}

// show is what systemd says of a unit.
func show(t *testing.T, unit string) map[string]string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", unit).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl show %s: %v: %s", unit, err, out)
	}
	properties := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			properties[k] = v
		}
	}
	return properties
}

func (s *scoped) wantUnit(t *testing.T, when string, want map[string]string) {
	t.Helper()
	unit := show(t, s.unit)
	for k, v := range want {
		if unit[k] != v {
			t.Errorf("%s: %s of %s is %q, want %q", when, k, s.unit, unit[k], v)
		}
	}
}

// wantGone checks that nothing of the scope is left: no unit, not even a failed
// one, no cgroup, and no process to keep it.
func (s *scoped) wantGone(t *testing.T, cgroup string) {
	t.Helper()
	s.wantUnit(t, "after delete", map[string]string{"LoadState": "not-found", "ActiveState": "inactive"})
	if cgroup == "" {
		t.Error("the scope had no cgroup")
	}
	if _, err := os.Stat("/sys/fs/cgroup" + cgroup); !os.IsNotExist(err) {
		t.Errorf("cgroup %s: %v, want none", cgroup, err)
	}
	if got := keepers(t); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// keepers are the processes that keep scopes.
func keepers(t *testing.T) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if data, err := os.ReadFile(p); err == nil && bytes.HasPrefix(data, []byte("wazero-scope-keeper\x00")) {
			pids = append(pids, p)
		}
	}
	return pids
}

func TestContract24AScopeOfSystemdsIsACgroupLikeAnyOther(t *testing.T) {
	n := useNode(t)
	if !haveSystemd(t) {
		before := traces(t, n)
		for path, option := range map[string]bool{"system.slice:nerdctl:x": false, "": true} {
			b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"), oci.WithCgroup(path))
			_, err := b.NewTask(b.ctx, cio.NullIO, func(_ context.Context, _ *containerd.Client, task *containerd.TaskInfo) error {
				task.Options = &runcoptions.Options{SystemdCgroup: option}
				return nil
			})
			wantError(t, err, nil, "systemd not running", map[bool]string{false: path, true: b.ID()}[option])
			b.remove()
		}
		leaves(t, n, before)
		return
	}

	weight := fmt.Sprint(cgroups.ConvertCPUSharesToCgroupV2Value(512))
	for name, create := range scopes(t, n, "spin.wasm", args("/app.wasm"), oci.WithMemoryLimit(200*mib), oci.WithPidsLimit(99), oci.WithCPUShares(512)) {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			s := create()
			cgroup := show(t, s.unit)["ControlGroup"]
			s.wantUnit(t, "created", map[string]string{
				"ActiveState": "active", "Slice": s.slice, "MemoryMax": "209715200", "TasksMax": "99", "CPUWeight": weight, "Delegate": "yes",
			})
			if !strings.HasSuffix(cgroup, "/"+s.slice+"/"+s.unit) {
				t.Errorf("cgroup %s: want that of %s in %s", cgroup, s.unit, s.slice)
			}
			if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.task.Pid())); err != nil || strings.TrimSpace(string(got)) != "0::"+cgroup {
				t.Errorf("the process is in %s, %v: want 0::%s", got, err, cgroup)
			}
			if pids, err := s.task.Pids(s.ctx); err != nil || len(pids) != 1 || pids[0].Pid != s.task.Pid() {
				t.Errorf("pids %v, %v: want %d", pids, err, s.task.Pid())
			}
			if got := stats(t, s.box); got.memoryLimit != 200*mib || got.pidsLimit != 99 || got.pids == 0 {
				t.Errorf("created: %+v", got)
			}
			s.mustStart(t)
			eventually(t, "it runs", func() bool { return stats(t, s.box).cpu > 300*time.Millisecond })
			least := cpuTime(t, s.task.Pid())
			got := stats(t, s.box).cpu
			if most := cpuTime(t, s.task.Pid()) + 50*time.Millisecond; got < least || got > most {
				t.Errorf("%v of processor time, want %v to %v", got, least, most)
			}

			if err := update(s.box, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](300 * mib)}, Pids: &specs.LinuxPids{Limit: ptr[int64](88)}}); err != nil {
				t.Fatal(err)
			}
			s.wantUnit(t, "updated", map[string]string{"MemoryMax": "314572800", "TasksMax": "88", "CPUWeight": weight})
			if got := stats(t, s.box); got.memoryLimit != 300*mib || got.pidsLimit != 88 {
				t.Errorf("updated: %+v", got)
			}

			if err := s.task.Pause(s.ctx); err != nil {
				t.Fatal(err)
			}
			still := cpuTime(t, s.task.Pid())
			time.Sleep(300 * time.Millisecond)
			if got := cpuTime(t, s.task.Pid()); got != still || status(t, s.box) != containerd.Paused {
				t.Errorf("%v of processor time while it was paused, state %s", got-still, status(t, s.box))
			}
			if err := s.task.Resume(s.ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it goes on", func() bool { return cpuTime(t, s.task.Pid()) > still })
			if err := s.task.Pause(s.ctx); err != nil {
				t.Fatal(err)
			}
			if err := s.task.Kill(s.ctx, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if got := s.exit(t); got != 143 {
				t.Errorf("status %d, want 143", got)
			}
			if got := stats(t, s.box); got.cpu < still || got.memoryLimit != 300*mib {
				t.Errorf("stopped: %+v: want %v of processor time at least", got, still)
			}
			s.delete(t)
			s.wantGone(t, cgroup)
			s.remove()
			leaves(t, n, before)
		})
	}
}

func TestContract24AnOOMKillInAScope(t *testing.T) {
	n := useNode(t)
	if !haveSystemd(t) {
		return // see the test above
	}
	rec := record(t, n)
	s := scopes(t, n, "limits-c.wasm", args("/app.wasm", "file", "/dev/shm/f", "60"), oci.WithMemoryLimit(50*mib), oci.WithMemorySwap(50*mib))["by option"]()
	cgroup := show(t, s.unit)["ControlGroup"]
	s.mustStart(t)
	if got := s.exit(t); got != 137 {
		t.Errorf("status %d, want 137", got)
	}
	if got := stats(t, s.box); got.oomKills != 1 {
		t.Errorf("%d OOM kills, want 1", got.oomKills)
	}
	s.delete(t)
	s.wantGone(t, cgroup)
	want := []string{"create", "start", "*events.TaskOOM", "exit", "delete"}
	if got := names(rec.of(s.ID(), len(want))); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestContract24DeleteAfterACrashRemovesTheScope(t *testing.T) {
	n := useNode(t)
	if !haveSystemd(t) {
		return // see the test above
	}
	for name, create := range scopes(t, n, "spin.wasm", args("/app.wasm")) {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			rec := record(t, n)
			s := create()
			cgroup := show(t, s.unit)["ControlGroup"]
			s.mustStart(t)
			pid := int(s.task.Pid())
			if err := syscall.Kill(shimPID(t, n, s.ID()), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "containerd tells of the exit", func() bool { return slices.Contains(names(rec.of(s.ID(), 3)), "exit") })
			if alive(pid) {
				t.Error("the instance process lives")
			}
			s.wantGone(t, cgroup)
			s.remove()
			leaves(t, n, before)
		})
	}
}
