package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// specOf changes the specification in a way that package oci has no option for.
func specOf(change func(*oci.Spec)) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		change(s)
		return nil
	}
}

// hookLog is where hooks say what they have seen, a file each.
type hookLog struct{ dir string }

func newHookLog(t *testing.T) *hookLog {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return &hookLog{dir}
}

// hook is a shell script that records its state and surroundings as name, and
// then does more; $dir is the log's.
func (l *hookLog) hook(t *testing.T, name, more string) specs.Hook {
	t.Helper()
	script := filepath.Join(l.dir, name+".sh")
	text := fmt.Sprintf(`#!/bin/sh
dir=%s
echo %s >>$dir/order
cat >$dir/%[2]s.state
echo "$0 $*" >$dir/%[2]s.args
tr '\0' '\n' </proc/$$/environ >$dir/%[2]s.env
for ns in mnt net ipc uts cgroup pid; do readlink /proc/self/ns/$ns; done >$dir/%[2]s.ns
%[3]s
`, l.dir, name, more)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return specs.Hook{Path: script}
}

func (l *hookLog) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func (l *hookLog) state(t *testing.T, name string) specs.State {
	t.Helper()
	var s specs.State
	if err := json.Unmarshal([]byte(l.read(t, name+".state")), &s); err != nil {
		t.Errorf("%s: state %q: %v", name, l.read(t, name+".state"), err)
	}
	return s
}

func (l *hookLog) ran(t *testing.T, want ...string) {
	t.Helper()
	if got := strings.Fields(l.read(t, "order")); !slices.Equal(got, want) {
		t.Errorf("hooks ran: %v, want %v", got, want)
	}
}

var hookNamespaces = []string{"mnt", "net", "ipc", "uts", "cgroup", "pid"}

func TestContract11HooksAreRunWithTheStateOnStdin(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	l := newHookLog(t)
	named := l.hook(t, "createRuntime", "")
	named.Args, named.Env = []string{"zero", "one", "two words"}, []string{"A=1", "B=x y"}
	hooks := &specs.Hooks{
		Prestart:      []specs.Hook{l.hook(t, "prestart", "")}, //nolint:staticcheck // deprecated, and in use
		CreateRuntime: []specs.Hook{named, l.hook(t, "second", "")},
		CreateContainer: []specs.Hook{l.hook(t, "createContainer", `
bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/' $dir/createContainer.state)
test -f $bundle/config.json || exit 4
test -f $bundle/rootfs/app.wasm && test -d $bundle/rootfs/scratch || exit 5
mkdir $bundle/rootfs/hooked && mount -t tmpfs hooked $bundle/rootfs/hooked && echo from a hook >$bundle/rootfs/hooked/file
mkdir $bundle/rootfs/kernel && mount -t proc proc $bundle/rootfs/kernel`)},
		Poststart: []specs.Hook{l.hook(t, "poststart", "")},
		Poststop:  []specs.Hook{l.hook(t, "poststop", "exit 9"), l.hook(t, "last", "")},
	}
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "cat", "/hooked/file", "ls", "/kernel", "idle"),
		oci.WithAnnotations(map[string]string{"org.example.note": "kept"}),
		oci.WithMounts([]specs.Mount{{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs"}}),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}),
		specOf(func(s *oci.Spec) { s.Hooks = hooks }))
	b.mustCreate(t)
	l.ran(t, "prestart", "createRuntime", "second", "createContainer")
	pid := int(b.task.Pid())
	of := func(pid string) (names []string) {
		for _, ns := range hookNamespaces {
			name, err := os.Readlink("/proc/" + pid + "/ns/" + ns)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		return names
	}
	check := func(name string, status specs.ContainerState, pid int, namespaces []string) {
		t.Helper()
		s := l.state(t, name)
		if s.Version == "" || s.ID != b.ID() || s.Status != status || s.Pid != pid || s.Bundle != n.Bundle(b.ID()) || s.Annotations["org.example.note"] != "kept" {
			t.Errorf("%s: state %+v, want %s with pid %d", name, s, status, pid)
		}
		if got := strings.Fields(l.read(t, name+".ns")); !slices.Equal(got, namespaces) {
			t.Errorf("%s: namespaces %v, want %v", name, got, namespaces)
		}
	}
	host := of("self")
	check("prestart", specs.StateCreating, pid, host)
	check("createRuntime", specs.StateCreating, pid, host)
	check("createContainer", specs.StateCreating, 1, of(fmt.Sprint(pid)))
	if got, want := l.read(t, "createRuntime.env"), "A=1\nB=x y"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	if got := l.read(t, "prestart.env"); got != "" {
		t.Errorf("environment %q, want none", got)
	}
	// The kernel puts the script's path where the shell's name was.
	if got, want := l.read(t, "createRuntime.args"), hooks.CreateRuntime[0].Path+" one two words"; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	b.mustStart(t)
	l.ran(t, "prestart", "createRuntime", "second", "createContainer", "poststart")
	check("poststart", specs.StateRunning, pid, host)
	eventually(t, "the guest sees what a hook has mounted, and no procfs", func() bool { return b.stdout.String() == "from a hook\n" })
	if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	b.delete(t)
	l.ran(t, "prestart", "createRuntime", "second", "createContainer", "poststart", "poststop", "last")
	check("poststop", specs.StateStopped, 0, host)
	b.remove()
	leaves(t, n, before)
}

func TestContract11AHookCanSetUpTheNetworkOfTheContainer(t *testing.T) {
	n := useNode(t)
	l := newHookLog(t)
	tool := filepath.Join(bin(), "guests", "busybox")
	hook := l.hook(t, "net", fmt.Sprintf(`
pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/' $dir/net.state)
nsenter --net=/proc/$pid/ns/net %s ip addr add 10.9.8.7/32 dev lo`, tool))
	hook.Env = []string{"PATH=" + os.Getenv("PATH")}
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"), specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook}}
	}))
	b.mustCreate(t)
	if got := procFile(t, b.task.Pid(), "net/fib_trie"); !strings.Contains(got, "10.9.8.7") {
		t.Errorf("no 10.9.8.7 in\n%s", got)
	}
}

func TestContract11AFailingHookFailsCreateAndLeavesNothing(t *testing.T) {
	n := useNode(t)
	one := 1
	for _, kind := range []string{"prestart", "createRuntime", "createContainer"} {
		for _, c := range []struct {
			name, script string
			timeout      *int
			want         []string
		}{
			{"exit status", "echo the reason >&2; exit 3", nil, []string{"exit status 3", "the reason"}},
			{"killed", "kill -9 $$", nil, []string{"exit status 137"}},
			{"timeout", "sleep 1000 & echo stuck; wait", &one, []string{"timeout of 1s", "stuck"}},
			{"missing", "", nil, []string{"no such file"}},
		} {
			t.Run(kind+", "+c.name, func(t *testing.T) {
				before := traces(t, n)
				l := newHookLog(t)
				bad := l.hook(t, "bad", c.script)
				bad.Timeout = c.timeout
				ran := []string{"bad", "poststop"}
				if c.name == "missing" {
					bad.Path += ".missing"
					ran = ran[1:]
				}
				never := l.hook(t, "never", "")
				h := &specs.Hooks{Poststart: []specs.Hook{never}, Poststop: []specs.Hook{l.hook(t, "poststop", "")}}
				switch kind {
				case "prestart":
					h.Prestart, h.CreateRuntime = []specs.Hook{bad, never}, []specs.Hook{never} //nolint:staticcheck // deprecated, and in use
				case "createRuntime":
					h.CreateRuntime, h.CreateContainer = []specs.Hook{bad, never}, []specs.Hook{never}
				case "createContainer":
					h.CreateContainer = []specs.Hook{bad, never}
				}
				b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), specOf(func(s *oci.Spec) { s.Hooks = h }))
				wantError(t, b.create(), nil, append(c.want, kind+" hook "+bad.Path)...)
				l.ran(t, ran...)
				if s := l.state(t, "poststop"); s.Status != specs.StateStopped || s.Pid != 0 {
					t.Errorf("poststop: %+v", s)
				}
				b.remove()
				leaves(t, n, before)
				noneNamed(t, l.dir)
			})
		}
	}
}

// They are waited for while the process is started, which they are told of.
func TestContract11NoHookIsRunWhenThereIsNoProcess(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	l := newHookLog(t)
	never := []specs.Hook{l.hook(t, "never", "")}
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), oci.WithPidsLimit(1), specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: never, CreateContainer: never, Poststop: never}
	}))
	wantError(t, b.create(), nil, "pids")
	l.ran(t)
	b.remove()
	leaves(t, n, before)
}

// noneNamed fails a test after which a process runs a script of dir.
func noneNamed(t *testing.T, dir string) {
	t.Helper()
	eventually(t, "no process of a hook is left", func() bool {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(files, func(f string) bool {
			data, err := os.ReadFile(f)
			return err == nil && (strings.Contains(string(data), dir) || string(data) == "sleep\x001000\x00" && strings.HasPrefix(cwdOf(f), "/tmp/wz"))
		})
	})
}

func cwdOf(cmdline string) string {
	cwd, _ := os.Readlink(filepath.Join(filepath.Dir(cmdline), "cwd"))
	return cwd
}

func TestContract11AFailingPoststartHookEndsTheContainer(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	rec := record(t, n)
	l := newHookLog(t)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"), specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{Poststart: []specs.Hook{l.hook(t, "poststart", "echo no good; exit 1")}, Poststop: []specs.Hook{l.hook(t, "poststop", "")}}
	}))
	b.mustCreate(t)
	wantError(t, b.task.Start(b.ctx), nil, "poststart hook", "exit status 1", "no good")
	if got := b.exit(t); got != 137 {
		t.Errorf("exit status %d", got)
	}
	b.delete(t)
	l.ran(t, "poststart", "poststop")
	if got, want := names(rec.of(b.ID(), 4)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	b.remove()
	leaves(t, n, before)
}

func TestContract11AStartContainerHookIsRefused(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	l := newHookLog(t)
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{l.hook(t, "never", "")}, StartContainer: []specs.Hook{{Path: "/bin/setup"}}}
	}))
	wantError(t, b.create(), errdefs.ErrInvalidArgument, "startContainer hook /bin/setup", "wasm container")
	l.ran(t)
	b.remove()
	leaves(t, n, before)
}

func TestContract11PoststopHooksRunWhenTheShimWasKilled(t *testing.T) {
	n := newNode(t, options())
	before := traces(t, n)
	rec := record(t, n)
	l := newHookLog(t)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"), specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{Poststop: []specs.Hook{l.hook(t, "poststop", ""), l.hook(t, "hangs", "exec sleep 1000")}}
	}))
	b.mustCreate(t)
	b.mustStart(t)
	shim := shimPID(t, n, b.ID())
	began := time.Now()
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd tells of the exit", func() bool {
		return slices.ContainsFunc(rec.of(b.ID(), 1), func(e any) bool { _, ok := e.(*eventstypes.TaskExit); return ok })
	})
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	l.ran(t, "poststop", "hangs")
	b.remove()
	l.ran(t, "poststop", "hangs")
	leaves(t, n, before)
	noneNamed(t, l.dir)
}

func TestContract11ACreateThatIsTriedAgainRunsItsHooksAgain(t *testing.T) {
	n := newNode(t, options())
	img := app(t, n, "probe.wasm")
	run(t, n, img, args("/app.wasm"))
	files, err := filepath.Glob(filepath.Join(n.Dir, "root/io.containerd.wazero.v1/modules/*/code/code"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.Truncate(files[0], 100); err != nil {
		t.Fatal(err)
	}
	l := newHookLog(t)
	b := container(t, n, img, args("/app.wasm"), specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{l.hook(t, "createRuntime", "")}, Poststop: []specs.Hook{l.hook(t, "poststop", "")}}
	}))
	b.mustCreate(t)
	l.ran(t, "createRuntime", "poststop", "createRuntime")
	if s := l.state(t, "createRuntime"); s.Pid != int(b.task.Pid()) {
		t.Errorf("state %+v, want pid %d", s, b.task.Pid())
	}
	b.remove()
	l.ran(t, "createRuntime", "poststop", "createRuntime", "poststop")
}

func TestContract11AHookIsEndedWithItsCreate(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	l := newHookLog(t)
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), specOf(func(s *oci.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{l.hook(t, "hangs", "exec sleep 1000")}, Poststop: []specs.Hook{l.hook(t, "poststop", "")}}
	}))
	// The deadline is what containerd hands on to the shim.
	ctx, cancel := context.WithTimeout(b.ctx, 3*time.Second)
	defer cancel()
	b.ctx = ctx
	wantError(t, b.create(), nil, "deadline exceeded")
	eventually(t, "the poststop hook has run", func() bool { return l.read(t, "order") == "hangs\npoststop" })
	b.remove()
	leaves(t, n, before)
	noneNamed(t, l.dir)
}
