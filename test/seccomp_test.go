package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// withSeccomp gives a container a profile.
func withSeccomp(p *specs.LinuxSeccomp) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Linux.Seccomp = p
		return nil
	}
}

// permissive is a profile that allows all but what is said; x32 by name, or it
// would kill what makes such a call.
func permissive(syscalls ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX32}, Syscalls: syscalls}
}

func denying(action specs.LinuxSeccompAction, names ...string) *specs.LinuxSeccomp {
	return permissive(specs.LinuxSyscall{Names: names, Action: action})
}

// scratch is a directory that the guest may write to.
func scratch() oci.SpecOpts {
	return oci.WithMounts([]specs.Mount{{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777"}}})
}

// attackNode is one whose shim is built to run native code in place of guests: see
// internal/instance/attack_syscalls.go.
func attackNode(t *testing.T) *node.Node {
	t.Helper()
	need(t)
	opts := options()
	opts.Shim = filepath.Join(bin(), "attack")
	if _, err := os.Stat(opts.Shim); err != nil {
		t.Fatal("needs the build that attacks: make bin/attack/containerd-shim-wazero-v1")
	}
	return newNode(t, opts)
}

type syscallReport struct {
	Pass         []int
	Answers, X32 map[string]int
	Arguments    map[string]string
}

// syscalls are what the filters of a container say to every system call.
func syscalls(t *testing.T, n *node.Node, opts ...oci.SpecOpts) (r syscallReport) {
	t.Helper()
	b, status := run(t, n, app(t, n, "hello.wasm"), append([]oci.SpecOpts{args("/app.wasm", "syscalls")}, opts...)...)
	if err := json.Unmarshal([]byte(b.stdout.String()), &r); err != nil || status != 0 {
		t.Fatalf("exit status %d, %v: %s%s", status, err, b.stdout, b.stderr)
	}
	return r
}

// unconditional are the system calls that a running guest's process may make
// whatever the arguments.
var unconditional = []int{
	// memory, threads, signals
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_EXIT, unix.SYS_SCHED_YIELD, unix.SYS_GETTID, unix.SYS_NANOSLEEP,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_GETPID, unix.SYS_RESTART_SYSCALL,
	// the poller
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	// WASI
	unix.SYS_CLOCK_GETTIME, unix.SYS_GETRANDOM, unix.SYS_PPOLL, unix.SYS_EXIT_GROUP,
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_LSEEK, unix.SYS_CLOSE, unix.SYS_FSTAT,
	unix.SYS_FTRUNCATE, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_GETDENTS64,
	unix.SYS_OPENAT, unix.SYS_NEWFSTATAT, unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_LINKAT,
	unix.SYS_SYMLINKAT, unix.SYS_READLINKAT, unix.SYS_UTIMENSAT,
}

// conditional are what comes of calls with certain arguments.
func conditional() map[string]string {
	all := map[string]string{
		"mmap memory": "passes", "mmap code": "EPERM", "mmap a file": "EPERM",
		"mprotect memory": "passes", "mprotect code": "EPERM", "mprotect writable code": "EPERM",
		"clone a thread": "EPERM", "clone a thread, tls": "EPERM",
		"clone a process": "EPERM", "clone vfork": "EPERM", "clone a namespace": "EPERM",
		"futex wait": "passes", "futex wake": "passes", "futex shared": "EPERM", "futex requeue pi": "EPERM",
		"tgkill itself": "passes", "tgkill another": "EPERM", "tgkill pid -1": "EPERM",
		"fcntl getfl": "passes", "fcntl setfl": "passes", "fcntl dup": "EPERM", "fcntl setown": "EPERM", "fcntl setpipe": "EPERM",
		"seccomp filter": "EPERM",
	}
	if runtime.GOARCH == "amd64" {
		all["clone a thread, tls"] = "passes"
	} else {
		all["clone a thread"] = "passes"
	}
	return all
}

// Every number is called, in the kernel, from native code where the guest would be.
func TestTheSystemCallsThatPassAreThoseOfTheList(t *testing.T) {
	n := attackNode(t)
	want := slices.Sorted(slices.Values(unconditional))
	check := func(t *testing.T, r syscallReport) {
		t.Helper()
		for _, number := range r.Pass {
			if !slices.Contains(want, number) {
				t.Errorf("%d passes, and is not listed", number)
			}
		}
		for _, number := range want {
			if !slices.Contains(r.Pass, number) {
				t.Errorf("%d is listed, and does not pass", number)
			}
		}
		for name, answer := range conditional() {
			if got := r.Arguments[name]; got != answer {
				t.Errorf("%s: %s, want %s", name, got, answer)
			}
		}
		if len(r.Arguments) != len(conditional()) {
			t.Errorf("%d calls with arguments, want %d", len(r.Arguments), len(conditional()))
		}
		if got, want := r.X32, map[string]int{"ENOSYS": 1024}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("calls of x32: %v, want %v", got, want)
		}
		// mprotect(2) depends on whether it is to make something executable.
		if r.Answers["EPERM"] < 300 || r.Answers["ENOSYS"] < 3000 || r.Answers["either"] != 1 || len(r.Answers) != 4 {
			t.Errorf("answers %v: want EPERM for what the kernel has, ENOSYS for more, and EXFULL, the probe's", r.Answers)
		}
	}
	t.Run("without a profile", func(t *testing.T) {
		check(t, syscalls(t, n))
	})
	t.Run("with the pid namespace of the host", func(t *testing.T) {
		check(t, syscalls(t, n, oci.WithHostNamespace(specs.PIDNamespace)))
	})
	t.Run("with a profile that allows everything", func(t *testing.T) {
		check(t, syscalls(t, n, withSeccomp(permissive())))
	})
	t.Run("with a profile that forbids filters", func(t *testing.T) {
		check(t, syscalls(t, n, withSeccomp(denying(specs.ActErrno, "seccomp", "prctl"))))
	})
	t.Run("with containerd's profile", func(t *testing.T) {
		check(t, syscalls(t, n, seccomp.WithDefaultProfile()))
	})
	t.Run("with a profile that forbids more", func(t *testing.T) {
		r := syscalls(t, n, withSeccomp(permissive(
			specs.LinuxSyscall{Names: []string{"getdents64", "symlinkat"}, Action: specs.ActErrno, ErrnoRet: new(uint(unix.EXDEV))},
		)))
		if got, want := r.Answers["EXDEV"], 2; got != want {
			t.Errorf("%d calls get the profile's error, want %d: %v", got, want, r.Answers)
		}
		if len(r.Pass) != len(want)-2 || slices.Contains(r.Pass, unix.SYS_GETDENTS64) || slices.Contains(r.Pass, unix.SYS_SYMLINKAT) {
			t.Errorf("%v pass, want all but two of %v", r.Pass, want)
		}
	})
	t.Run("in the manner of another architecture", func(t *testing.T) {
		if runtime.GOARCH != "amd64" {
			t.Skip("a process here cannot")
		}
		b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm", "syscalls-foreign"))
		if status != 128+uint32(unix.SIGSYS) || b.stdout.String() != "" {
			t.Errorf("exit status %d, printed %q, want the process killed", status, b.stdout)
		}
	})
}

// What the Go runtime does when it crashes, it does under the filters, too.
func TestACrashOfTheProcessIsToldAndEndsIt(t *testing.T) {
	n := attackNode(t)
	img := app(t, n, "hello.wasm")
	b, status := run(t, n, img, args("/app.wasm", "syscalls-panic"))
	if status != 2 || !strings.Contains(b.stderr.String(), "panic: on purpose\n\ngoroutine ") {
		t.Errorf("a panic: exit status %d, printed %s", status, b.stderr)
	}
	b, status = run(t, n, img, args("/app.wasm", "syscalls-fault"))
	if status != 0 || !strings.HasPrefix(b.stdout.String(), "recovered: runtime error: invalid memory address") {
		t.Errorf("a fault: exit status %d, printed %s%s", status, b.stdout, b.stderr)
	}
}

// Every thread of an instance process is under a filter when it is ready to be
// started, and under a second one once it is.
func TestEveryThreadIsUnderTheFilters(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"))
	b.mustCreate(t)
	filters := func(want string) {
		t.Helper()
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", b.task.Pid()))
		if err != nil || len(threads) < 2 {
			t.Fatalf("threads %v, %v", threads, err)
		}
		for _, path := range threads {
			status, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			if !bytes.Contains(status, []byte("\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t"+want+"\n")) {
				t.Errorf("%s: want %s filters: %s", path, want, status)
			}
		}
	}
	filters("1")
	b.mustStart(t)
	eventually(t, "the second filter", func() bool { return statusField(t, b.task.Pid(), "Seccomp_filters") == "2" })
	filters("2")
}

// A process that compiles is under a filter while it reads the module.
func TestACompileProcessIsUnderAFilter(t *testing.T) {
	n := newNode(t, options())
	b := container(t, n, app(t, n, "esbuild.wasm"), args("/app.wasm", "--version"))
	created := make(chan error)
	go func() { created <- b.create() }()
	seen := ""
	for seen == "" {
		select {
		case err := <-created:
			t.Fatalf("no compile process was seen under a filter; create: %v", err)
		default:
		}
		cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range cmdlines {
			cmdline, _ := os.ReadFile(path)
			if !bytes.HasSuffix(cmdline, []byte("containerd-shim-wazero-v1\x00compile\x00")) || elsewhere(n, filepath.Dir(path)) {
				continue
			}
			status, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
			if bytes.Contains(status, []byte("\nSeccomp_filters:\t1\n")) {
				seen = path
			}
		}
	}
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	b.mustStart(t)
	if status := b.exit(t); status != 0 || b.stdout.String() == "" {
		t.Errorf("exit status %d, %s%s", status, b.stdout, b.stderr)
	}
}

// A kernelLog is what the kernel writes to its log from a moment on.
type kernelLog struct{ f *os.File }

func openKernelLog(t *testing.T) *kernelLog {
	t.Helper()
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	return &kernelLog{f}
}

var refusal = regexp.MustCompile(`type=1326 .* pid=(\d+) .* syscall=(\d+) `)

// refused are the system calls that a process was refused, as the kernel has
// written down so far. What is read of others is forgotten.
func (l *kernelLog) refused(t *testing.T, pid uint32) (numbers []int) {
	t.Helper()
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(int(l.f.Fd()), record)
		if errors.Is(err, unix.EPIPE) {
			t.Fatal("the kernel's log has been overwritten")
		}
		if err != nil {
			return numbers // no more, for now
		}
		if m := refusal.FindSubmatch(record[:n]); m != nil && string(m[1]) == fmt.Sprint(pid) {
			number, err := strconv.Atoi(string(m[2]))
			if err != nil {
				t.Fatal(err)
			}
			numbers = append(numbers, number)
		}
	}
}

// logging has the kernel write down what is refused, by whichever filter.
func logging(p *specs.LinuxSeccomp) oci.SpecOpts {
	p.Flags = append(p.Flags, specs.LinuxSeccompFlagLog)
	return withSeccomp(p)
}

// Whatever the guests do, what is refused to their processes they can do without:
// nothing.
func TestNothingIsRefusedThatAGuestNeeds(t *testing.T) {
	n := useNode(t)
	log := openKernelLog(t)
	watched := func(t *testing.T, img containerd.Image, p *specs.LinuxSeccomp, withStdin bool, opts ...oci.SpecOpts) (*box, uint32, []int) {
		t.Helper()
		b := container(t, n, img, append(opts, scratch(), logging(p))...)
		if withStdin {
			b.mustCreate(t, true)
		} else {
			b.mustCreate(t)
		}
		pid := b.task.Pid()
		b.mustStart(t)
		if withStdin {
			if _, err := io.WriteString(b.stdin, "a line\n"); err != nil {
				t.Fatal(err)
			}
			b.stdin.Close()
			b.closeStdin(t)
		}
		status := b.exit(t)
		b.delete(t)
		return b, status, log.refused(t, pid)
	}
	t.Run("but what is, shows", func(t *testing.T) {
		_, _, refused := watched(t, app(t, n, "probe.wasm"), denying(specs.ActErrno, "getdents64"), false, args("/app.wasm", "ls", "/"))
		if !slices.Contains(refused, unix.SYS_GETDENTS64) {
			t.Errorf("got %v, want %d among them: does this kernel log what is refused?", refused, unix.SYS_GETDENTS64)
		}
	})
	for _, tt := range []struct {
		name, guest string
		args        []string
		status      uint32
		stdin       bool
	}{
		{"a Go program", "probe.wasm", []string{"args", "env", "cwd", "write", "/scratch/f", "x", "cat", "/scratch/f", "ls", "/scratch", "sleep", "50ms", "now", "random", "burst", "200000", "grow", "64", "exit", "7"}, 7, false},
		{"a Go program that reads", "probe.wasm", []string{"stdin"}, 0, true},
		{"a Go program that panics", "probe.wasm", []string{"trap"}, 2, false},
		{"every function of WASI", "preview1-c.wasm", []string{"scratch"}, 0, true},
		{"a C program", "hello-c.wasm", nil, 0, false},
		{"files", "files-c.wasm", []string{"/scratch"}, 3, false},
		{"a trap", "trap.wasm", nil, 134, false},
		{"no end to the stack", "recurse.wasm", nil, 134, false},
		{"an exit", "exit.wasm", nil, 255, false},
		{"a tiny module", "hello.wasm", nil, 0, false},
		{"a large program", "esbuild.wasm", []string{"--help"}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, status, refused := watched(t, app(t, n, tt.guest), permissive(), tt.stdin, args(append([]string{"/app.wasm"}, tt.args...)...))
			if status != tt.status {
				t.Errorf("exit status %d, want %d: %s%s", status, tt.status, b.stdout, b.stderr)
			}
			if len(refused) > 0 {
				t.Errorf("refused: %v", refused)
			}
		})
	}
}

// WASI's own words for what the kernel says to a guest: errno of preview 1.
const wasiENOSYS, wasiEPERM = "52", "63"

// Every function of WASI does what it does, or says that it cannot; none is in the
// way of the filters.
func TestEveryFunctionOfWASIGetsThroughTheFilters(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "preview1-c.wasm"), args("/app.wasm", "scratch"), scratch(), seccomp.WithDefaultProfile())
	b.mustCreate(t, true)
	b.mustStart(t)
	if _, err := io.WriteString(b.stdin, "a line\n"); err != nil {
		t.Fatal(err)
	}
	if status := b.exit(t); status != 0 {
		t.Fatalf("exit status %d: %s%s", status, b.stdout, b.stderr)
	}
	lines := strings.Split(strings.TrimSpace(b.stdout.String()), "\n")
	if len(lines) < 45 {
		t.Errorf("%d results: %s", len(lines), b.stdout)
	}
	for _, line := range lines {
		what, result, _ := strings.Cut(line, ": ")
		switch {
		case result == "0":
		case what == "sock_shutdown stdin" && result != wasiENOSYS && result != wasiEPERM: // is none
		default:
			t.Errorf("%s: error %s", what, result)
		}
	}
}

func TestAProfileHoldsForAGuest(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "probe.wasm")
	writes := args("/app.wasm", "write", "/scratch/f", "x", "ls", "/scratch")
	for _, tt := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		status  uint32
		out     string
	}{
		{"that allows everything", permissive(), 0, "entry: f\n"},
		{"that refuses with EPERM by default", denying(specs.ActErrno, "getdents64"), 1, "error: readdirent /scratch: Operation not permitted\n"},
		{"that refuses with an error of its own", permissive(
			specs.LinuxSyscall{Names: []string{"getdents64"}, Action: specs.ActErrno, ErrnoRet: new(uint(unix.ELOOP))},
		), 1, "error: readdirent /scratch: Too many symbolic links\n"},
		{"that looks at arguments", permissive(specs.LinuxSyscall{
			Names: []string{"openat"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 2, Op: specs.OpMaskedEqual, Value: unix.O_CREAT, ValueTwo: unix.O_CREAT}},
		}), 1, "error: open /scratch/f: Operation not permitted\n"},
		{"whose arguments are others", permissive(specs.LinuxSyscall{
			Names: []string{"openat"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 2, Op: specs.OpEqualTo, Value: 1 << 40}},
		}), 0, "entry: f\n"},
		{"that kills", denying(specs.ActKill, "getdents64"), 128 + uint32(unix.SIGSYS), ""},
		{"that kills a thread", denying(specs.ActKillThread, "getdents64"), 128 + uint32(unix.SIGSYS), ""},
		{"that kills the process", denying(specs.ActKillProcess, "getdents64"), 128 + uint32(unix.SIGSYS), ""},
		{"that sends a signal", denying(specs.ActTrap, "getdents64"), 128 + uint32(unix.SIGSYS), ""},
		{"that logs", denying(specs.ActLog, "getdents64"), 0, "entry: f\n"},
		{"that asks a tracer, where there is none", denying(specs.ActTrace, "getdents64"), 1, "error: readdirent /scratch: Not implemented on wasip1\n"},
		{"of calls that there are not", denying(specs.ActKill, "no_such_call", "getdents65"), 0, "entry: f\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, status := run(t, n, img, writes, scratch(), withSeccomp(tt.profile))
			if status != tt.status || b.stdout.String() != tt.out {
				t.Errorf("exit status %d, printed %q, want %d and %q: %s", status, b.stdout, tt.status, tt.out, b.stderr)
			}
		})
	}
	t.Run("and for an exec", func(t *testing.T) {
		b := idle(t, n, withSeccomp(denying(specs.ActErrno, "getdents64")))
		e, status := b.runExec(t, "ls", nil, "/app.wasm", "ls", "/")
		if status != 1 || !strings.Contains(e.stdout.String(), "Operation not permitted") {
			t.Errorf("exit status %d, printed %q", status, e.stdout)
		}
	})
	t.Run("and leaves a process that is stopped to go on", func(t *testing.T) {
		b := container(t, n, img, args("/app.wasm", "print", "up", "sleep", "300ms"), seccomp.WithDefaultProfile())
		b.mustCreate(t)
		b.mustStart(t)
		eventually(t, "the guest runs", func() bool { return b.stdout.String() != "" })
		for range 20 {
			for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
				if err := unix.Kill(int(b.task.Pid()), sig); err != nil && !errors.Is(err, unix.ESRCH) {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Millisecond)
			}
		}
		if status := b.exit(t); status != 0 || b.stdout.String() != "up\nslept: true\n" {
			t.Errorf("exit status %d, printed %q: %s", status, b.stdout, b.stderr)
		}
	})
}

// An agent answers for the calls of one process that a profile leaves to it.
type agent struct {
	path  string
	state chan specs.ContainerProcessState
	asked chan int32 // the number of each call
}

// newAgent lets every call happen but one, which fails with ELOOP.
func newAgent(t *testing.T, refused int32) *agent {
	t.Helper()
	a := &agent{filepath.Join(t.TempDir(), "agent"), make(chan specs.ContainerProcessState, 1), make(chan int32, 1000)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.path})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	t.Cleanup(func() {
		l.Close()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	go func() { done <- a.serve(l, refused) }()
	return a
}

func (a *agent) serve(l *net.UnixListener, refused int32) error {
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	data, rights := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, rn, _, _, err := conn.ReadMsgUnix(data, rights)
	conn.Close()
	if err != nil {
		return err
	}
	var state specs.ContainerProcessState
	if err := json.Unmarshal(data[:n], &state); err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("%d messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	defer unix.Close(fds[0])
	a.state <- state
	for {
		poll := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if poll[0].Revents&unix.POLLHUP != 0 {
			return nil // the process has ended
		}
		// struct seccomp_notif: id, pid, flags, and struct seccomp_data
		var question [80]byte
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&question))); e != 0 {
			if e == unix.EINTR || e == unix.ENOENT { // a signal came first: the call will be made again
				continue
			}
			return e
		}
		number := int32(binary.NativeEndian.Uint32(question[16:]))
		select {
		case a.asked <- number:
		default:
		}
		// struct seccomp_notif_resp: id, val, error, flags
		var answer [24]byte
		copy(answer[:], question[:8])
		if number == refused {
			binary.NativeEndian.PutUint32(answer[16:], ^uint32(unix.ELOOP)+1)
		} else {
			binary.NativeEndian.PutUint32(answer[20:], unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&answer)))
	}
}

func TestAnAgentAnswersForWhatAProfileLeavesToIt(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "probe.wasm")
	profile := func(path string) *specs.LinuxSeccomp {
		p := denying(specs.ActNotify, "getdents64", "openat", "mmap", "unshare")
		p.ListenerPath, p.ListenerMetadata = path, "of the test"
		return p
	}
	a := newAgent(t, unix.SYS_GETDENTS64)
	b := container(t, n, img, args("/app.wasm", "ls", "/"), withSeccomp(profile(a.path)))
	b.mustCreate(t)
	pid := int(b.task.Pid())
	state := <-a.state
	if state.Pid != pid || state.State.ID != b.ID() || state.State.Status != specs.StateCreating || state.Metadata != "of the test" || !slices.Equal(state.Fds, []string{specs.SeccompFdName}) {
		t.Errorf("state %+v", state)
	}
	b.mustStart(t)
	if status := b.exit(t); status != 1 || b.stdout.String() != "error: readdirent /: Too many symbolic links\n" {
		t.Errorf("exit status %d, printed %q: %s", status, b.stdout, b.stderr)
	}
	b.delete(t)
	asked := map[int32]bool{}
	for len(a.asked) > 0 {
		asked[<-a.asked] = true
	}
	if !asked[unix.SYS_OPENAT] || !asked[unix.SYS_MMAP] || !asked[unix.SYS_GETDENTS64] {
		t.Errorf("asked for %v", asked)
	}
	t.Run("but not where it is not", func(t *testing.T) {
		before := traces(t, n)
		b := container(t, n, img, args("/app.wasm", "ls", "/"), withSeccomp(profile(filepath.Join(t.TempDir(), "nobody"))))
		wantError(t, b.create(), errdefs.ErrInvalidArgument, "seccomp: listenerPath ", "no such file or directory")
		b.remove()
		leaves(t, n, before)
	})
}

// A profile that cannot be had as it is meant is an error of Create, and so is one
// under which the process does not get as far as its guest.
func TestAProfileThatCannotBeHadFailsCreate(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "hello.wasm")
	if _, status := run(t, n, img, args("/app.wasm")); status != 0 { // it is compiled
		t.Fatalf("exit status %d", status)
	}
	before := traces(t, n)
	for _, tt := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		says    string
	}{
		{"an unknown action", denying("SCMP_ACT_MAYBE", "read"), `seccomp: syscalls[0] [read]: action "SCMP_ACT_MAYBE": unknown`},
		{"an unknown flag", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_X"}}, `seccomp: flag "SECCOMP_FILTER_FLAG_X"`},
		{"a process killed for making code executable", denying(specs.ActKill, "mprotect"), "under the container's seccomp profile: the instance process ended with status 159"},
		{"a process that may do nothing", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, "under the container's seccomp profile: "},
		{"a process that may not open its module", denying(specs.ActErrno, "openat2"), "under the container's seccomp profile: entry point /app.wasm: "},
		{"a process that may not say that it is ready", denying(specs.ActErrno, "write"), "under the container's seccomp profile: the instance process ended with status 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := container(t, n, img, args("/app.wasm"), withSeccomp(tt.profile))
			wantError(t, b.create(), errdefs.ErrInvalidArgument, tt.says)
			b.remove()
			leaves(t, n, before)
		})
	}
}
