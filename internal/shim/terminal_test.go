package shim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A session is a terminal with its process's side, and the client's.
type session struct {
	*streams
	process *os.File // what a process has for its streams
	in, out *os.File // the client's ends
	signals chan unix.Signal
}

func openTerminalSession(t *testing.T) *session {
	t.Helper()
	in, out := fifo(t), fifo(t)
	s := &session{
		streams: openTestStreams(t, stdio.Stdio{Stdin: in, Stdout: out, Stderr: "unused", Terminal: true}),
		in:      clientEnd(t, in, unix.O_WRONLY), out: clientEnd(t, out, unix.O_RDONLY|unix.O_NONBLOCK),
		signals: make(chan unix.Signal, 10),
	}
	s.onSignal = func(sig unix.Signal) { s.signals <- sig }
	if s.child[0] != s.child[1] || s.child[1] != s.child[2] {
		t.Error("the streams are not one terminal")
	}
	fd, err := unix.FcntlInt(s.child[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.process = os.NewFile(uintptr(fd), "terminal")
	t.Cleanup(func() { s.process.Close() })
	s.handOver()
	return s
}

func (s *session) typed(t *testing.T, text string) {
	t.Helper()
	if _, err := s.in.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestATerminalEchoesAndGivesLines(t *testing.T) {
	s := openTerminalSession(t)
	s.typed(t, "line\r")
	buf := make([]byte, 100)
	if n, err := s.process.Read(buf); err != nil || string(buf[:n]) != "line\n" {
		t.Errorf("the process reads %q, %v", buf[:n], err)
	}
	if _, err := s.process.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	s.process.Close()
	s.drain(time.Minute)
	got, err := io.ReadAll(s.out)
	if want := "line\r\none\r\ntwo\r\n"; err != nil || string(got) != want {
		t.Errorf("the client reads %q, %v, want %q", got, err, want)
	}
}

func TestATypedSignalIsToldOf(t *testing.T) {
	s := openTerminalSession(t)
	for typed, want := range map[string]unix.Signal{"\x03": unix.SIGINT, "a line\rand \x1c": unix.SIGQUIT} {
		s.typed(t, typed)
		if got := <-s.signals; got != want {
			t.Errorf("%q: got %v, want %v", typed, got, want)
		}
	}
}

func TestNothingIsASignalOnATerminalWithoutThem(t *testing.T) {
	s := openTerminalSession(t)
	mode, err := unix.IoctlGetTermios(int(s.process.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Lflag &^= unix.ISIG | unix.ICANON | unix.ECHO
	if err := unix.IoctlSetTermios(int(s.process.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	// The copy has seen to the first when the second arrives.
	for _, typed := range []string{"\x03", "x"} {
		s.typed(t, typed)
		buf := make([]byte, 10)
		if n, err := s.process.Read(buf); err != nil || string(buf[:n]) != typed {
			t.Errorf("the process reads %q, %v, want %q", buf[:n], err, typed)
		}
	}
	if len(s.signals) > 0 {
		t.Errorf("got %v", <-s.signals)
	}
}

func TestTheInputOfATerminalEndsWithCloseIO(t *testing.T) {
	for typed, want := range map[string]string{"": "", "one\rtwo\r": "one\ntwo\n", "one\rrest": "one\nrest"} {
		s := openTerminalSession(t)
		s.typed(t, typed)
		s.in.Close() // detached
		if err := s.closeStdin(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s.process)
		if err != nil || string(got) != want {
			t.Errorf("typed %q: the process reads %q, %v, want %q", typed, got, err, want)
		}
	}
}

func TestTheSizeOfATerminal(t *testing.T) {
	s := openTerminalSession(t)
	if err := s.resize(132, 43); err != nil {
		t.Fatal(err)
	}
	size, err := unix.IoctlGetWinsize(int(s.process.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col != 132 || size.Row != 43 {
		t.Errorf("got %v, %v", size, err)
	}
	if err := s.resize(1<<16, 1); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("got %v, want %v", err, errdefs.ErrInvalidArgument)
	}
	if err := openTestStreams(t, stdio.Stdio{}).resize(80, 25); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("without a terminal: got %v, want %v", err, errdefs.ErrFailedPrecondition)
	}
}

func TestATerminalHasTheOwnerOfItsOptions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	s, err := openStreams(t.Context(), "id", stdio.Stdio{Terminal: true}, owner{1234, 5678})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var st unix.Stat_t
	if err := unix.Fstat(int(s.child[0].Fd()), &st); err != nil || st.Uid != 1234 || st.Gid != 5678 {
		t.Errorf("got %d:%d, %v", st.Uid, st.Gid, err)
	}
}

func TestTheOutputOfATerminalOutlivesTheClient(t *testing.T) {
	s := openTerminalSession(t)
	path := s.paths.Stdout
	s.out.Close()
	for i := range 3 {
		if _, err := fmt.Fprintln(s.process, i); err != nil {
			t.Fatal(err)
		}
	}
	s.process.Close()
	s.drain(time.Minute)
	got, err := io.ReadAll(clientEnd(t, path, unix.O_RDONLY|unix.O_NONBLOCK))
	if want := "0\r\n1\r\n2\r\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// The FIFO is full, so is the terminal, and nobody reads.
func TestAClientThatDoesNotReadHoldsUpNeitherExitNorDelete(t *testing.T) {
	before := runtime.NumGoroutine()
	s := openTerminalSession(t)
	if err := unix.SetNonblock(int(s.process.Fd()), true); err != nil {
		t.Fatal(err)
	}
	total := 0
	for quiet := 0; quiet < 20; {
		n, err := unix.Write(int(s.process.Fd()), []byte(strings.Repeat("x", 4096)))
		if err == nil {
			total, quiet = total+n, 0
			continue
		}
		quiet++
		time.Sleep(5 * time.Millisecond)
	}
	s.process.Close()
	s.drain(time.Hour)
	// A client that comes late still gets everything, until Delete.
	r := bufio.NewReader(s.out)
	if err := unix.SetNonblock(int(s.out.Fd()), false); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); err != nil || int(n) != total {
		t.Errorf("got %d bytes, %v, want %d", n, err, total)
	}
	s.close()

	s = openTerminalSession(t)
	for range 20 {
		go s.process.Write(make([]byte, 1<<20)) // ends with the terminal
	}
	time.Sleep(10 * time.Millisecond)
	if err := s.close(); err != nil {
		t.Error(err)
	}
	s.process.Close()
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, want %d", runtime.NumGoroutine(), before)
}

func TestATerminalWithoutStreams(t *testing.T) {
	s := openTestStreams(t, stdio.Stdio{Terminal: true})
	if _, err := s.child[1].Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := s.closeStdin(); err != nil {
		t.Error(err)
	}
	s.handOver()
	s.drain(time.Minute)
	if copying, n := s.terminal.progress(); copying || n != 1000 {
		t.Errorf("copying is %v after %d bytes", copying, n)
	}
}

func TestATerminalWritesToAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s := openTestStreams(t, stdio.Stdio{Stdout: "file://" + path, Terminal: true})
	if _, err := s.child[1].WriteString("text\n"); err != nil {
		t.Fatal(err)
	}
	s.handOver()
	s.drain(time.Minute)
	if got, err := os.ReadFile(path); err != nil || string(got) != "text\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
}
