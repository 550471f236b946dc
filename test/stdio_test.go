package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

const burst = 8 << 20

// createWith makes the task with streams that the test provides for.
func (b *box) createWith(cfg cio.Config) (err error) {
	b.task, err = b.NewTask(b.ctx, func(string) (cio.IO, error) { return fixedIO{cfg}, nil })
	return err
}

func (b *box) mustCreateWith(t *testing.T, cfg cio.Config) {
	t.Helper()
	if err := b.createWith(cfg); err != nil {
		t.Fatalf("create: %v", err)
	}
}

// onTerminal makes the task with a terminal that the test types on.
func (b *box) onTerminal(t *testing.T) {
	t.Helper()
	r, w := io.Pipe()
	b.stdin = w
	t.Cleanup(func() { w.Close() })
	task, err := b.NewTask(b.ctx, cio.NewCreator(cio.WithStreams(r, b.stdout, nil), cio.WithTerminal, cio.WithFIFODir(filepath.Join(b.node.Dir, "fifo"))))
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	b.task = task
}

func (b *box) typed(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(b.stdin, text); err != nil {
		t.Fatal(err)
	}
}

// shows waits until the output has the text.
func (b *box) shows(t *testing.T, text string) {
	t.Helper()
	for range 500 {
		if strings.Contains(b.stdout.String(), text) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the output is %q, want %q in it", b.stdout, text)
}

// A pty is a terminal of the test's own, for ctr.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	conn, err := m.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: 101, Row: 37})
		peer, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			err = errno
		}
		slave = os.NewFile(peer, "slave")
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return m, slave
}

// size is that of the terminal a process has for the given descriptor.
func windowSize(t *testing.T, pid uint32, fd int) string {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%dx%d", s.Col, s.Row)
}

func TestContract26TheInputOfATerminalEndsWithCloseIOAndNotWithTheClient(t *testing.T) {
	n := useNode(t)
	cfg := fifos(t)
	cfg.Terminal = true
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin"))
	b.mustCreateWith(t, cfg)
	b.mustStart(t)
	out, err := os.Open(cfg.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var copied buffer
	done := make(chan struct{})
	go func() { defer close(done); io.Copy(&copied, out) }()
	for i, line := range []string{"one\r", "two\r", "th"} {
		w, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
		w.Close() // detached
		eventually(t, "the echo", func() bool {
			return strings.Contains(copied.String(), strings.TrimSpace(line)) && strings.Count(copied.String(), "stdin:") == min(i+1, 2)
		})
		if !alive(int(b.task.Pid())) {
			t.Fatal("the guest took it for the end")
		}
	}
	b.closeStdin(t)
	if got := b.exit(t); got != 0 {
		t.Errorf("exit status %d", got)
	}
	<-done
	if got := copied.String(); !strings.HasSuffix(got, "stdin: th\r\nlines: 3\r\n") {
		t.Errorf("%q", got)
	}
	b.delete(t)
}

func TestContract26CloseIOBeforeTheStartAndTwice(t *testing.T) {
	n := useNode(t)
	for _, terminal := range []bool{false, true} {
		cfg := fifos(t)
		cfg.Terminal = terminal
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin"))
		b.mustCreateWith(t, cfg)
		b.closeStdin(t)
		b.closeStdin(t)
		b.mustStart(t)
		if got := b.exit(t); got != 0 {
			t.Errorf("terminal %v: exit status %d", terminal, got)
		}
		b.delete(t)
	}
}

func TestContract27ABurstOnATerminalArrivesWhole(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(burst), "print", "the end"))
	b.onTerminal(t)
	b.mustStart(t)
	if got := b.exit(t); got != 0 {
		t.Errorf("exit status %d", got)
	}
	b.delete(t)
	if got := b.stdout.String(); len(got) != burst+len("the end\r\n") || !strings.HasSuffix(got, "0the end\r\n") {
		t.Errorf("%d bytes that end in %q", len(got), got[max(0, len(got)-20):])
	}
}

// containerd's client closes its ends in Delete, read or not.
func TestContract27AClientThatReadsSlowlyGetsEverything(t *testing.T) {
	n := useNode(t)
	for _, terminal := range []bool{false, true} {
		t.Run(map[bool]string{false: "from FIFOs", true: "from a terminal"}[terminal], func(t *testing.T) {
			const size = 150_000
			b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(size)))
			opts := []cio.Opt{cio.WithStreams(nil, slowly{b.stdout}, nil), cio.WithFIFODir(filepath.Join(n.Dir, "fifo"))}
			if terminal {
				opts = append(opts, cio.WithTerminal)
			}
			task, err := b.NewTask(b.ctx, cio.NewCreator(opts...))
			if err != nil {
				t.Fatal(err)
			}
			b.task = task
			b.mustStart(t)
			b.exit(t)
			b.delete(t)
			if got := len(b.stdout.String()); got != size {
				t.Errorf("%d bytes, want %d", got, size)
			}
		})
	}
}

type slowly struct{ w io.Writer }

func (s slowly) Write(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.w.Write(p)
}

func TestContract27AClientThatLeavesATerminalAndComesBack(t *testing.T) {
	n := useNode(t)
	cfg := fifos(t)
	cfg.Terminal = true
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "print", "a", "stdin", "print", "b"))
	b.mustCreateWith(t, cfg)
	out, err := os.Open(cfg.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	b.mustStart(t)
	buf := make([]byte, 3)
	if _, err := io.ReadFull(out, buf); err != nil || string(buf) != "a\r\n" {
		t.Fatalf("%q, %v", buf, err)
	}
	out.Close() // gone
	b.closeStdin(t)
	if got := b.exit(t); got != 0 {
		t.Errorf("exit status %d", got)
	}
	out, err = os.OpenFile(cfg.Stdout, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	got, err := io.ReadAll(out)
	if want := "lines: 0\r\nb\r\n"; err != nil || !strings.HasSuffix(string(got), want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	b.delete(t)
}

// The FIFO is full, the guest blocked in its write.
func TestContract27AClientThatNeverReadsHoldsUpNeitherExitNorDelete(t *testing.T) {
	n := useNode(t)
	for _, terminal := range []bool{false, true} {
		cfg := fifos(t)
		cfg.Terminal = terminal
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(burst)))
		b.mustCreateWith(t, cfg)
		b.mustStart(t)
		full, err := os.OpenFile(cfg.Stdout, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the FIFO is full", func() bool {
			unread, err := unix.IoctlGetInt(int(full.Fd()), unix.TIOCINQ)
			return err == nil && unread > 48<<10 // pages need not be
		})
		full.Close()
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.exit(t); got != 143 {
			t.Errorf("terminal %v: exit status %d", terminal, got)
		}
		b.delete(t)
	}
}

func TestContract28ATerminal(t *testing.T) {
	n := useNode(t)
	t.Run("echoes, gives lines, and makes CRLF of a newline", func(t *testing.T) {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "print", "a", "stderr", "b", "stdin"))
		b.onTerminal(t)
		if s, err := shimClient(t, n, b.ID()).State(b.ctx, &taskapi.StateRequest{ID: b.ID()}); err != nil || !s.Terminal {
			t.Errorf("state %v, %v: want a terminal", s, err)
		}
		b.mustStart(t)
		b.shows(t, "a\r\nb\r\n")
		b.typed(t, "hallx\x7fo\r")
		b.shows(t, "hallx\b \bo\r\nstdin: hallo\r\n")
		b.typed(t, "\x04") // Ctrl-D
		if got := b.exit(t); got != 0 {
			t.Errorf("exit status %d", got)
		}
		b.delete(t)
		if got := b.stdout.String(); !strings.HasSuffix(got, "lines: 1\r\n") {
			t.Errorf("%q", got)
		}
	})
	for char, want := range map[string]uint32{"\x03": 130, "\x1c": 131} {
		for _, guest := range []string{"probe.wasm", "spin.wasm"} {
			t.Run(fmt.Sprintf("%q ends %s with %d", char, guest, want), func(t *testing.T) {
				b := container(t, n, app(t, n, guest), args("/app.wasm", "stdin"))
				b.onTerminal(t)
				b.mustStart(t)
				b.typed(t, "text"+char)
				if got := b.exit(t); got != want {
					t.Errorf("exit status %d, want %d", got, want)
				}
				b.delete(t)
			})
		}
	}
	t.Run("has the size that it is given", func(t *testing.T) {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin"), oci.WithTTYSize(91, 31))
		b.onTerminal(t)
		for fd := range 3 {
			if got := windowSize(t, b.task.Pid(), fd); got != "91x31" {
				t.Errorf("descriptor %d: consoleSize: %s", fd, got)
			}
		}
		b.mustStart(t)
		if err := b.task.Resize(b.ctx, 132, 43); err != nil {
			t.Fatal(err)
		}
		for fd := range 3 {
			if got := windowSize(t, b.task.Pid(), fd); got != "132x43" {
				t.Errorf("descriptor %d: %s", fd, got)
			}
		}
		// And it controls nobody: no signal comes from it but the shim's.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.task.Pid()))
		if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); err != nil || f[4] != "0" {
			t.Errorf("%v: controlling terminal %s", err, f[4])
		}
		b.typed(t, "\x04")
		b.exit(t)
		b.delete(t)
	})
	t.Run("without one there is nothing to resize", func(t *testing.T) {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin"))
		b.mustCreate(t, true)
		_, err := shimClient(t, n, b.ID()).ResizePty(b.ctx, &taskapi.ResizePtyRequest{ID: b.ID(), Width: 80, Height: 25})
		wantError(t, errgrpc.ToNative(err), errdefs.ErrFailedPrecondition, "no terminal")
		b.stdin.Close()
	})
	t.Run("leaves nothing", func(t *testing.T) {
		img := app(t, n, "probe.wasm")
		before := traces(t, n)
		terminals := func() int {
			entries, err := os.ReadDir("/dev/pts")
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		was := terminals()
		b := container(t, n, img, args("/app.wasm", "stdin"))
		b.onTerminal(t)
		if got := terminals(); got != was+1 {
			t.Errorf("%d terminals, want %d", got, was+1)
		}
		if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		b.exit(t)
		b.delete(t)
		if got := terminals(); got != was {
			t.Errorf("%d terminals, want %d", got, was)
		}
		b.remove()
		leaves(t, n, before)
	})
}

func TestContract28CtrWithATerminal(t *testing.T) {
	n := useNode(t)
	app(t, n, "probe.wasm")
	for name, c := range map[string]struct {
		typed  string
		status int
		shows  string
	}{
		"ended by Ctrl-D": {"hello\r\x04", 7, "hello\r\nstdin: hello\r\nlines: 1\r\n"},
		"ended by Ctrl-C": {"hello\r\x03", 130, "hello\r\nstdin: hello\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			master, slave := pty(t)
			id := newID(t)
			cmd := n.Ctr(t.Context(), "run", "--rm", "-t", "--runtime="+node.Runtime, "example.com/probe.wasm:latest", id, "/app.wasm", "print", "ready", "stdin", "exit", "7")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			slave.Close()
			var b buffer
			// ctr leaves it to its own terminal, too, to make CRLF of a newline.
			screen := func() string { return strings.ReplaceAll(b.String(), "\r\r\n", "\r\n") }
			done := make(chan struct{})
			go func() { defer close(done); io.Copy(&b, master) }() // ends with ctr
			t.Cleanup(func() {
				if c, err := n.Client.LoadContainer(n.Context(context.Background()), id); err == nil {
					(&box{Container: c, node: n}).remove() // ctr has not come to it
				}
				if t.Failed() {
					t.Logf("the screen shows %q", b.String())
				}
			})
			eventually(t, "it is ready", func() bool { return strings.Contains(screen(), "ready\r\n") })
			task, err := n.Client.TaskService().Get(n.Context(t.Context()), &tasks.GetRequest{ContainerID: id})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "it has the size of ctr's terminal", func() bool { return windowSize(t, task.Process.Pid, 1) == "101x37" })
			for i, char := range c.typed {
				if i == len(c.typed)-1 { // not before the line has come back
					eventually(t, "the line", func() bool { return strings.Contains(screen(), "stdin: hello\r\n") })
				}
				if _, err := master.WriteString(string(char)); err != nil {
					t.Fatal(err)
				}
			}
			var exit interface{ ExitCode() int }
			if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			<-done
			if got := cmd.ProcessState.ExitCode(); got != c.status || !strings.Contains(screen(), "ready\r\n"+c.shows) {
				t.Errorf("exit status %d, want %d; the screen shows %q, want %q", got, c.status, screen(), c.shows)
			}
		})
	}
}

func TestContract28AFileByURI(t *testing.T) {
	n := useNode(t)
	path := filepath.Join(t.TempDir(), "made", "by the shim.log")
	uri := (&url.URL{Scheme: "file", Path: path}).String()
	for _, c := range []struct {
		cfg  cio.Config
		want int
	}{
		{cio.Config{Stdout: uri, Stderr: uri}, 2 * burst},
		{cio.Config{Stdout: uri, Stderr: uri, Terminal: true}, 2 * burst}, // appended
	} {
		was := 0
		if info, err := os.Stat(path); err == nil {
			was = int(info.Size())
		}
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(burst), "errburst", fmt.Sprint(burst)))
		b.mustCreateWith(t, c.cfg)
		b.mustStart(t)
		if got := b.exit(t); got != 0 {
			t.Errorf("exit status %d", got)
		}
		if info, err := os.Stat(path); err != nil || int(info.Size())-was != c.want {
			t.Errorf("terminal %v: %v: %d bytes at the exit, want %d", c.cfg.Terminal, err, int(info.Size())-was, c.want)
		}
		b.delete(t)
	}
}

// loggerURI names the logger of this repository.
func loggerURI(dir, mode string) string {
	return (&url.URL{Scheme: "binary", Path: filepath.Join(bin(), "logger"), RawQuery: url.Values{"dir": {dir}, "mode": {mode}}.Encode()}).String()
}

func loggerPID(t *testing.T, dir string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestContract28ALogger(t *testing.T) {
	n := useNode(t)
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("gets everything, terminal %v", terminal), func(t *testing.T) {
			dir := t.TempDir()
			uri := loggerURI(dir, "")
			b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(burst), "errburst", fmt.Sprint(burst)))
			b.mustCreateWith(t, cio.Config{Stdout: uri, Stderr: uri, Terminal: terminal})
			pid := loggerPID(t, dir)
			if !alive(pid) {
				t.Error("the logger is dead")
			}
			b.mustStart(t)
			if got := b.exit(t); got != 0 {
				t.Errorf("exit status %d", got)
			}
			b.delete(t)
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the logger is there after Delete: %v", err)
			}
			want := map[string]int{"stdout": burst, "stderr": burst}
			if terminal {
				want = map[string]int{"stdout": 2 * burst, "stderr": 0}
			}
			for name, want := range want {
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || int(info.Size()) != want {
					t.Errorf("%s: %v, %v, want %d bytes", name, info, err, want)
				}
			}
			if who, err := os.ReadFile(filepath.Join(dir, "who")); string(who) != node.Namespace+"/"+b.ID() {
				t.Errorf("it is told %q, %v", who, err)
			}
		})
	}
	t.Run("has an end with a container that never ran", func(t *testing.T) {
		dir := t.TempDir()
		b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
		b.mustCreateWith(t, cio.Config{Stdout: loggerURI(dir, "")})
		pid := loggerPID(t, dir)
		if _, err := shimClient(t, n, b.ID()).Delete(b.ctx, &taskapi.DeleteRequest{ID: b.ID()}); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("the logger is there: %v", err)
		}
	})
	t.Run("has an end when Create fails after it", func(t *testing.T) {
		dir := t.TempDir()
		b := container(t, n, app(t, n, "nostart.wasm"), args("/app.wasm"))
		wantError(t, b.createWith(cio.Config{Stdout: loggerURI(dir, "")}), errdefs.ErrInvalidArgument, "_start")
		if err := syscall.Kill(loggerPID(t, dir), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("the logger is there: %v", err)
		}
	})
	t.Run("that never reads does not hold up Delete for ever", func(t *testing.T) {
		dir := t.TempDir()
		uri := loggerURI(dir, "deaf")
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(burst)))
		b.mustCreateWith(t, cio.Config{Stdout: uri, Stderr: uri})
		b.mustStart(t)
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.exit(t); got != 143 {
			t.Errorf("exit status %d", got)
		}
		ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
		defer cancel()
		if _, err := b.task.Delete(ctx); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(loggerPID(t, dir), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("the logger is there: %v", err)
		}
	})
	t.Run("has an end when the shim is killed", func(t *testing.T) {
		dir := t.TempDir()
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreateWith(t, cio.Config{Stdout: loggerURI(dir, "")})
		b.mustStart(t)
		if err := syscall.Kill(shimPID(t, n, b.ID()), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid := loggerPID(t, dir)
		eventually(t, "the logger ends", func() bool { return !alive(pid) })
	})
}

func TestContract28StreamsThatCannotBeHad(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "hello.wasm")
	dir := t.TempDir()
	for name, c := range map[string]struct {
		cfg   cio.Config
		parts []string
	}{
		"stdin does not exist":            {cio.Config{Stdin: dir + "/no-in"}, []string{"stdin", dir + "/no-in", "no such file"}},
		"stdout does not exist":           {cio.Config{Stdout: dir + "/no-out"}, []string{"stdout", dir + "/no-out", "no such file"}},
		"stderr does not exist":           {cio.Config{Stderr: dir + "/no-err"}, []string{"stderr", dir + "/no-err", "no such file"}},
		"a terminal's output":             {cio.Config{Stdout: dir + "/no-tty", Terminal: true}, []string{"stdout", dir + "/no-tty", "no such file"}},
		"an unknown scheme":               {cio.Config{Stdout: "syslog:///dev/log"}, []string{"stdout", "syslog:///dev/log"}},
		"a logger that does not exist":    {cio.Config{Stdout: "binary:///no/such/logger"}, []string{"logger /no/such/logger", "no such file"}},
		"a logger that dies":              {cio.Config{Stdout: loggerURI(dir, "dies")}, []string{"logger " + bin() + "/logger", "before it was ready", "exit status 3"}},
		"a logger that dies, on terminal": {cio.Config{Stdout: loggerURI(dir, "dies"), Terminal: true}, []string{"exit status 3"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			b := container(t, n, img, args("/app.wasm"))
			wantError(t, b.createWith(c.cfg), errdefs.ErrInvalidArgument, c.parts...)
			b.remove()
			leaves(t, n, before)
		})
	}
}

func TestContract28EmptyPaths(t *testing.T) {
	n := useNode(t)
	for _, terminal := range []bool{false, true} {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "burst", fmt.Sprint(burst), "stderr", "x", "exit", "3"))
		b.mustCreateWith(t, cio.Config{Terminal: terminal})
		b.mustStart(t)
		if got := b.exit(t); got != 3 {
			t.Errorf("terminal %v: exit status %d", terminal, got)
		}
		b.delete(t)
	}
	b, status := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin"))
	if status != 0 || b.stdout.String() != "lines: 0\n" {
		t.Errorf("without a stdin: exit status %d, %q", status, b.stdout)
	}
}

func TestContract28TheOwnerOfPipesAndTerminals(t *testing.T) {
	n := useNode(t)
	for name, cfg := range map[string]cio.Config{
		"a terminal": {Terminal: true},
		"a logger":   {Stdout: loggerURI(t.TempDir(), "")},
	} {
		ctx := n.Context(t.Context())
		img, id := app(t, n, "hello.wasm"), newID(t)
		c, err := n.Client.NewContainer(ctx, id, containerd.WithImage(img), containerd.WithNewSnapshot(id, img),
			containerd.WithRuntime(node.Runtime, nil), containerd.WithNewSpec(oci.WithImageConfig(img), args("/app.wasm")))
		if err != nil {
			t.Fatal(err)
		}
		b := &box{Container: c, stdout: &buffer{}, stderr: &buffer{}, ctx: ctx, node: n}
		t.Cleanup(b.remove)
		b.task, err = c.NewTask(ctx, func(string) (cio.IO, error) { return fixedIO{cfg}, nil }, containerd.WithUIDOwner(1234), containerd.WithGIDOwner(5678))
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/1", b.task.Pid()), &st); err != nil || st.Uid != 1234 || st.Gid != 5678 {
			t.Errorf("%s: owned by %d:%d, %v", name, st.Uid, st.Gid, err)
		}
	}
}
