package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// Whoever takes an instance process over has its ends of the control socket and of
// the relay's pipe. These tests take both out of a live one, by pidfd_getfd(2), and
// speak in its place: no wall is between them and the shim.
const (
	controlFD = 3
	spansFD   = 5
)

// taken is a descriptor of a process.
func taken(t *testing.T, pid, fd int) *os.File {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	got, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(got), "taken")
	t.Cleanup(func() { f.Close() })
	return f
}

// residentKiB is the memory of a process.
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	_, rest, _ := strings.Cut(procFile(t, uint32(pid), "status"), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

// What a process writes into the relay costs its shim nothing, delays no exit, and
// changes nothing in any trace but its own spans.
func TestAProcessThatWritesAnythingIntoTheRelayIsNoHarm(t *testing.T) {
	n, c := tracedNode(t, options())
	img := image(t, n, "hostile", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("hello.wasm", guest(t, "hello.wasm")))
	const stranger = "4bf92f3577b34da6a3ce929d0e0e4736"
	long := strings.Repeat("a", 1100) // more than a text may have, and three of them in a frame
	for name, write := range map[string]func(w *os.File) error{
		"garbage": func(w *os.File) error {
			_, err := w.Write([]byte("\x00\xff{\n}\n[[[[\nnull\n{\"name\":1}\n" + strings.Repeat("{", 4000) + "\n"))
			return err
		},
		"a flood of lines": func(w *os.File) error {
			return flood(w, []byte(strings.Repeat("x", 4000)+"\n"))
		},
		"a line without an end": func(w *os.File) error { return flood(w, bytes.Repeat([]byte("x"), 64<<10)) },
		"a flood of spans":      func(w *os.File) error { return flood(w, []byte(`{"name":"module.run","start":1,"end":2}`+"\n")) },
		"lies": func(w *os.File) error {
			for _, f := range []string{
				`{"name":"task.delete","start":1,"end":2}`,
				`{"name":"module.translate","parent":"00-` + stranger + `-00f067aa0ba902b7-01","traceID":"` + stranger + `","start":1,"end":9223372036854775807,` +
					`"attrs":{"container.id":"another","k8s.pod.name":"another","wasm.module.size":-1,"` + long + `":"x"},"error":"` + "\xff\xfe" + long + `","errorType":"` + long + `"}`,
			} {
				if _, err := w.Write([]byte(f + "\n")); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			grouped := oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)})
			neighbour := container(t, n, img, args("/app.wasm", "idle"), grouped)
			neighbour.mustCreate(t)
			neighbour.mustStart(t)
			b := container(t, n, img, args("/app.wasm", "idle"), grouped)
			b.mustCreate(t)
			b.mustStart(t)
			life := trace(t, c, b.ID(), "module.start") // what it had to say, it has said
			shim := shimPID(t, n, b.ID())
			rss := residentKiB(t, shim)

			w := taken(t, int(b.task.Pid()), spansFD)
			began := time.Now()
			if err := write(w); err != nil {
				t.Fatal(err)
			}
			if got := residentKiB(t, shim); got > rss+16<<10 {
				t.Errorf("the shim has grown from %d to %d KiB", rss, got)
			}
			// The others of the shim go on, and begin and end.
			other := container(t, n, img, args("/hello.wasm"), grouped)
			other.mustCreate(t)
			other.mustStart(t)
			if status := other.exit(t); status != 0 || other.stdout.String() != "hello\n" {
				t.Errorf("another container: exit status %d, %q", status, other.stdout)
			}
			other.delete(t)
			// And w is still open, as if another process had it.
			if err := b.task.Kill(b.ctx, unix.SIGKILL); err != nil {
				t.Error(err)
			}
			if status := b.exit(t); status != 137 {
				t.Errorf("exit status %d", status)
			}
			b.delete(t)
			if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
				t.Errorf("the shim still has the pipe: %v", err)
			}
			if !alive(int(neighbour.task.Pid())) || shimPID(t, n, neighbour.ID()) != shim {
				t.Error("the neighbour is not what it was")
			}
			done := time.Now()
			trace(t, c, b.ID(), "module.run", "task.delete")
			trace(t, c, other.ID(), "module.run", "task.delete")
			lied := false
			for _, s := range c.Trace(life["task.create"].TraceID) {
				if s.Name == "module.translate" {
					lied = true
					if s.Parent != life["task.create"].ID || s.Start.Before(life["task.create"].Start) || s.End.After(done) || len(s.Status) > 1100 ||
						s.Attrs["wasm.module.size"] != "-1" || s.Attrs[long] != "" || len(s.Attrs["error.type"]) > 1100 {
						t.Errorf("got %+v", s)
					}
				}
				if s.Attrs["container.id"] != b.ID() && !strings.HasPrefix(s.Name, "shim.") {
					t.Errorf("got a span of container %q: %+v", s.Attrs["container.id"], s)
				}
				if s.Name == "module.run" && s.Start.Before(life["task.create"].Start) || s.End.After(done.Add(time.Second)) || s.Attrs["k8s.pod.name"] != "" {
					t.Errorf("got %+v from %v to %v", s, began, done)
				}
			}
			if lied != (name == "lies") {
				t.Errorf("a span that the process has made up: got %t", lied)
			}
			if got := c.Trace(stranger); len(got) > 0 {
				t.Errorf("in a trace of the process's choosing: %+v", got)
			}
			if _, err := neighbour.task.Delete(neighbour.ctx, containerd.WithProcessKill); err != nil {
				t.Error(err)
			}
			leaves(t, n, before)
		})
	}
}

// flood writes a megabyte, or until nobody reads any more: it must be told.
func flood(w *os.File, line []byte) error {
	for range 1<<20/len(line) + 1 {
		_, err := w.Write(line)
		if errors.Is(err, unix.EPIPE) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("all of it was read")
}

// A loading process is the instance process of a Create that is in flight: stopped,
// for good, before it is told to load its module, its end of the control socket in
// the hands of the test.
type loading struct {
	*box
	pid     int
	control *os.File
	created chan error
	cancel  context.CancelFunc
}

var nextModule sync.Map

func newLoading(t *testing.T, n *node.Node) *loading {
	t.Helper()
	// A module that the cache does not have: the process waits while it is compiled.
	i, _ := nextModule.LoadOrStore(t.Name(), newID(t))
	name := i.(string)
	module := slices.Concat(guest(t, "probe.wasm"), []byte{0, byte(len(name) + 1), byte(len(name))}, []byte(name))
	b := container(t, n, image(t, n, name, node.Regular("app.wasm", module)), args("/app.wasm", "idle"))
	l := &loading{box: b, created: make(chan error, 1)}
	b.ctx, l.cancel = context.WithCancel(b.ctx)
	t.Cleanup(l.cancel)
	go func() { l.created <- b.create() }()
	eventually(t, "the process is there", func() bool {
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			if cmdline, err := os.ReadFile(p); err != nil || !bytes.HasSuffix(cmdline, []byte("\x00instance\x00")) || elsewhere(n, filepath.Dir(p)) {
				continue
			}
			l.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(p)))
			return unix.Kill(l.pid, unix.SIGSTOP) == nil
		}
		return false
	})
	eventually(t, "it has stopped", func() bool { return strings.Contains(procFile(t, uint32(l.pid), "status"), "\nState:\tT") })
	l.control = taken(t, l.pid, controlFD)
	return l
}

// told is what the shim says next.
func (l *loading) told(t *testing.T) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	if err := unix.SetsockoptTimeval(int(l.control.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		t.Fatal(err)
	}
	for {
		n, _, err := unix.Recvfrom(int(l.control.Fd()), buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func (l *loading) say(t *testing.T, packet string, files ...int) {
	t.Helper()
	if err := unix.Sendmsg(int(l.control.Fd()), []byte(packet), unix.UnixRights(files...), nil, unix.MSG_NOSIGNAL); err != nil {
		t.Fatal(err)
	}
}

// result is what Create comes to.
func (l *loading) result(t *testing.T) error {
	t.Helper()
	select {
	case err := <-l.created:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("Create does not end")
		return nil
	}
}

// A process that never answers holds up its own Create only, and that for as long as
// its client wants to wait.
func TestACreateWhoseProcessNeverAnswersEndsWithItsClientOrItsProcess(t *testing.T) {
	n, _ := tracedNode(t, options())
	for name, end := range map[string]func(l *loading) error{
		"the client gives up": func(l *loading) error { l.cancel(); return nil },
		// The control socket stays open, as if another process had it.
		"the process is killed": func(l *loading) error { return unix.Kill(l.pid, unix.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			l := newLoading(t, n)
			if got := l.told(t); !strings.Contains(got, `"load"`) {
				t.Fatalf("told %s", got)
			}
			// Meanwhile others are served.
			if b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm")); status != 0 {
				t.Errorf("another container: exit status %d, %q", status, b.stdout)
			}
			select {
			case err := <-l.created:
				t.Fatalf("Create has ended: %v", err)
			default:
			}
			if err := end(l); err != nil {
				t.Fatal(err)
			}
			if err := l.result(t); err == nil {
				t.Error("Create has succeeded")
			}
			leaves(t, n, before)
		})
	}
}

// What a process says in the place of Ready is an error of its own Create, which
// leaves nothing behind: in the shim no descriptor, on the machine nothing.
func TestAProcessThatSaysAnythingFailsItsOwnCreate(t *testing.T) {
	n, _ := tracedNode(t, options())
	many := func(t *testing.T) []int {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return slices.Repeat([]int{int(r.Fd())}, 250)
	}
	for name, say := range map[string]func(t *testing.T, l *loading){
		"garbage":         func(t *testing.T, l *loading) { l.say(t, "\x00\xff{") },
		"deep nesting":    func(t *testing.T, l *loading) { l.say(t, strings.Repeat("[", 60000)) },
		"nothing":         func(t *testing.T, l *loading) { l.say(t, "") },
		"an empty object": func(t *testing.T, l *loading) { l.say(t, "{}") },
		"more than a message may be": func(t *testing.T, l *loading) {
			l.say(t, `{"ready":true}`+strings.Repeat(" ", 80_000))
		},
		"250 descriptors with it": func(t *testing.T, l *loading) { l.say(t, `{"ready":true}`, many(t)...) },
		"an error that is no text": func(t *testing.T, l *loading) {
			l.say(t, `{"error":{"kind":"bad-request","text":"`+"\xff\xfe"+`\u001b]0;title\u0007\u009b\ud800`+strings.Repeat("x", 50_000)+`"}}`)
		},
		"an error of a kind there is not": func(t *testing.T, l *loading) { l.say(t, `{"error":{"kind":"root","text":"no"}}`) },
		"what only the shim says":         func(t *testing.T, l *loading) { l.say(t, `{"load":{"path":"/etc/shadow"},"start":true}`) },
	} {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			l := newLoading(t, n)
			l.told(t)
			say(t, l)
			err := l.result(t)
			if err == nil {
				t.Fatal("Create has succeeded")
			}
			if text := err.Error(); errdefs.IsUnavailable(err) || strings.Contains(text, "ttrpc") || len(text) > 40_000 || strings.ContainsAny(text, "\x00\x1b\x07\u009b") {
				t.Errorf("the client is told %.200q", text)
			}
			leaves(t, n, before)
		})
	}
}

// Once it has said Ready nobody listens: what more there is stays in the socket, and
// the shim neither waits for the process to be told nor for what it says.
func TestAProcessThatGoesOnTalkingIsNotListenedTo(t *testing.T) {
	n, _ := tracedNode(t, options())
	before := traces(t, n)
	l := newLoading(t, n)
	l.told(t)
	for _, packet := range []string{`{"ready":true}`, `{"ready":true}`, `{"error":{"kind":"stale-cache","text":"no"}}`, "\xff"} {
		l.say(t, packet)
	}
	if err := l.result(t); err != nil {
		t.Fatal(err)
	}
	l.ctx = n.Context(t.Context())
	// Until it is full; nobody reads what the shim says, either.
	for {
		err := unix.Sendmsg(int(l.control.Fd()), bytes.Repeat([]byte("x"), 1000), nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l.mustStart(t)
	if err := l.task.Kill(l.ctx, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if status := l.exit(t); status != 143 {
		t.Errorf("exit status %d", status)
	}
	l.delete(t)
	leaves(t, n, before)
}

// A hook's last words are part of an error. Bytes that are no text must not end the
// connection to containerd, which would take every container of the shim for dead.
func TestAHookThatSaysAnythingIsAnErrorAndNoMore(t *testing.T) {
	n, _ := tracedNode(t, options())
	l := newHookLog(t)
	img := app(t, n, "probe.wasm")
	grouped := oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)})
	neighbour := container(t, n, img, args("/app.wasm", "idle"), grouped)
	neighbour.mustCreate(t)
	neighbour.mustStart(t)
	hook := l.hook(t, "bad", `printf 'caf\351 \377\376 \033[31m'; exit 7`)
	b := container(t, n, img, args("/app.wasm", "idle"), grouped, specOf(func(s *oci.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook}} }))
	err := b.create()
	wantError(t, err, nil, "hook", "exit status 7", "caf\ufffd")
	if status, err := neighbour.task.Status(neighbour.ctx); err != nil || status.Status != containerd.Running || !alive(int(neighbour.task.Pid())) {
		t.Errorf("the neighbour: %v, %v", status, err)
	}
	if _, err := neighbour.task.Delete(neighbour.ctx, containerd.WithProcessKill); err != nil {
		t.Error(err)
	}
}

// What no process can be made of is said at Create, names the field, and leaves
// nothing behind.
func TestAMalformedConfigurationFailsCreate(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "probe.wasm")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(s *oci.Spec)
		want   []string
	}{
		"a NUL in an argument":           {func(s *oci.Spec) { s.Process.Args = append(s.Process.Args, "a\x00b") }, []string{"process.args", "NUL"}},
		"a NUL in the environment":       {func(s *oci.Spec) { s.Process.Env = append(s.Process.Env, "A=\x00") }, []string{"process.env", "NUL"}},
		"a variable without a name":      {func(s *oci.Spec) { s.Process.Env = append(s.Process.Env, "=x") }, []string{"process.env", "no name"}},
		"a NUL in the working directory": {func(s *oci.Spec) { s.Process.Cwd = "/\x00" }, []string{"cwd"}},
		"a user that is none":            {func(s *oci.Spec) { s.Process.User.UID = 1<<32 - 1 }, []string{"process.user", "4294967295"}},
		"a group that is none":           {func(s *oci.Spec) { s.Process.User.AdditionalGids = []uint32{1<<32 - 1} }, []string{"process.user", "4294967295"}},
		"a host name that is too long":   {func(s *oci.Spec) { s.Hostname = strings.Repeat("h", 65) }, []string{"hostname", "64"}},
		"a FIFO for a namespace": {func(s *oci.Spec) {
			s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.IPCNamespace), specs.LinuxNamespace{Type: specs.IPCNamespace, Path: fifo})
		}, []string{fifo, "not a ipc namespace"}},
		"the root of all cgroups": {func(s *oci.Spec) { s.Linux.CgroupsPath = "/../" }, []string{"cgroup", "/../"}},
		"more than 4 MiB":         {func(s *oci.Spec) { s.Process.Env = append(s.Process.Env, "A="+strings.Repeat("x", 5<<20)) }, []string{"config.json", "larger than"}},
		"a device rule that is none": {func(s *oci.Spec) {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{})
		}, []string{"resources.devices[1]", "access"}},
		"a mount at a path with a NUL":     {func(s *oci.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/a\x00", Type: "tmpfs"}) }, []string{"mount at", "invalid argument"}},
		"limits of resources out of sight": {func(s *oci.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_\xff"}} }, []string{"rlimit"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			b := container(t, n, img, args("/app.wasm", "idle"), specOf(c.change))
			wantError(t, b.create(), errdefs.ErrInvalidArgument, c.want...)
			leaves(t, n, before)
		})
	}
}

func without(namespaces []specs.LinuxNamespace, kind specs.LinuxNamespaceType) []specs.LinuxNamespace {
	return slices.DeleteFunc(slices.Clone(namespaces), func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

// The environment of a container is as large as its configuration may be.
func TestALargeEnvironmentIsNotAWait(t *testing.T) {
	n := useNode(t)
	env := make([]string, 50_000)
	for i := range env {
		env[i] = fmt.Sprintf("SERVICE_%d_PORT=tcp://10.0.0.1:80", i)
	}
	b, status := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "env"), oci.WithEnv(env))
	if status != 0 || !strings.Contains(b.stdout.String(), "SERVICE_49999_PORT=") {
		t.Errorf("exit status %d, %.200q %.200q", status, b.stdout, b.stderr)
	}
}
