package shim

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openTestStreams(t *testing.T, paths stdio.Stdio) *streams {
	t.Helper()
	s, err := openStreams(paths)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.handOver(); s.close() })
	return s
}

// clientEnd opens a FIFO as a client does that comes after the shim.
func clientEnd(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := open(path, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOutputOutlivesTheClient(t *testing.T) {
	path := fifo(t)
	s := openTestStreams(t, stdio.Stdio{Stdout: path})
	first := clientEnd(t, path, unix.O_RDONLY|unix.O_NONBLOCK)
	first.Close()
	if _, err := s.child[1].WriteString("while nobody reads"); err != nil {
		t.Fatal(err)
	}
	s.handOver() // the process is gone
	second := clientEnd(t, path, unix.O_RDONLY|unix.O_NONBLOCK)
	got, err := io.ReadAll(second)
	if err != nil {
		t.Fatal(err)
	}
	if want := "while nobody reads"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNobodyReadsAfterTheStreamsAreClosed(t *testing.T) {
	path := fifo(t)
	s := openTestStreams(t, stdio.Stdio{Stderr: path})
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.child[2].WriteString("x"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v, want %v", err, unix.EPIPE)
	}
	if err := s.close(); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestInputEndsWithCloseIOAndNotWithTheClient(t *testing.T) {
	path := fifo(t)
	s := openTestStreams(t, stdio.Stdio{Stdin: path})
	for _, text := range []string{"one", "two"} {
		client := clientEnd(t, path, unix.O_WRONLY)
		if _, err := client.WriteString(text); err != nil {
			t.Fatal(err)
		}
		client.Close()
		got := make([]byte, len(text))
		if _, err := io.ReadFull(s.child[0], got); err != nil || string(got) != text {
			t.Errorf("got %q, %v, want %q", got, err, text)
		}
	}
	client := clientEnd(t, path, unix.O_WRONLY)
	if _, err := client.WriteString("rest"); err != nil {
		t.Fatal(err)
	}
	client.Close()
	for range 2 {
		if err := s.closeStdin(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := io.ReadAll(s.child[0]); err != nil || string(got) != "rest" {
		t.Errorf("got %q, %v, want the rest and the end of file", got, err)
	}
}

func TestAProcessGetsStreamsThatBlock(t *testing.T) {
	s := openTestStreams(t, stdio.Stdio{Stdin: fifo(t), Stdout: fifo(t), Stderr: fifo(t)})
	for i, f := range s.child {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("stream %d: got flags %#x, %v, want it to block", i, flags, err)
		}
		want := unix.O_WRONLY
		if i == 0 {
			want = unix.O_RDONLY
		}
		if got := flags & unix.O_ACCMODE; got != want {
			t.Errorf("stream %d: got access %d, want %d: it would hold its own other end", i, got, want)
		}
	}
}

func TestAStreamWithoutAPathIsTheNullDevice(t *testing.T) {
	s := openTestStreams(t, stdio.Stdio{})
	if got, err := io.ReadAll(s.child[0]); err != nil || len(got) > 0 {
		t.Errorf("stdin: got %q, %v, want the end of file", got, err)
	}
	for i := 1; i <= 2; i++ {
		if _, err := s.child[i].WriteString("x"); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
	}
	if err := s.closeStdin(); err != nil {
		t.Error(err)
	}
}

func TestARegularFileIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openTestStreams(t, stdio.Stdio{Stdout: path, Stderr: path})
	for i, text := range []string{"out\n", "err\n"} {
		if _, err := s.child[i+1].WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if want := "before\nout\nerr\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestARegularFileIsReadAsInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, []byte("input"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openTestStreams(t, stdio.Stdio{Stdin: path})
	if got, err := io.ReadAll(s.child[0]); err != nil || string(got) != "input" {
		t.Errorf("got %q, %v, want the file", got, err)
	}
}

func TestAStreamThatCannotBeHadIsAnInvalidArgument(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{
		"a missing path":    filepath.Join(dir, "none"),
		"a directory":       dir,
		"a device":          "/dev/null",
		"a logging program": "binary:///usr/bin/logger",
		"a file by URI":     "file://" + dir + "/log",
		"a FIFO by URI":     "fifo://" + dir + "/fifo",
		"an unknown scheme": "npipe:x",
	} {
		for stream, paths := range map[string]stdio.Stdio{"stdin": {Stdin: path}, "stdout": {Stdout: path}, "stderr": {Stderr: path}} {
			if _, err := openStreams(paths); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%s as %s: got %v, want %v", name, stream, err, errdefs.ErrInvalidArgument)
			}
		}
	}
	if _, err := openStreams(stdio.Stdio{Terminal: true}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a terminal: got %v, want %v", err, errdefs.ErrInvalidArgument)
	}
}

// Without a reader, opening a FIFO to write to it fails: ENXIO of fifo(7).
func TestStreamsThatCannotAllBeHadAreAllClosed(t *testing.T) {
	out := fifo(t)
	if _, err := openStreams(stdio.Stdio{Stdout: out, Stderr: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Fatal("got no error")
	}
	f, err := open(out, unix.O_WRONLY|unix.O_NONBLOCK)
	if err == nil {
		f.Close()
	}
	if !errors.Is(err, unix.ENXIO) {
		t.Errorf("got %v, want %v: a reader is still open", err, unix.ENXIO)
	}
}
