package shim

import (
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
	s, err := openStreams(t.Context(), "id", paths, owner{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
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
	process, err := pollable(s.child[2])
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := process.WriteString("x"); !errors.Is(err, unix.EPIPE) {
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
		// Nothing to read is no end of file: that would be poll(2)'s POLLHUP.
		fds := []unix.PollFd{{Fd: int32(s.child[0].Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 0); err != nil || n != 0 {
			t.Errorf("after the client: got events %#x, %v, want none", fds[0].Revents, err)
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
	for _, tt := range []struct{ name, path, says string }{
		{"a missing path", dir + "/none", dir + "/none: no such file"},
		{"a missing FIFO by URI", "fifo://" + dir + "/none", dir + "/none: no such file"},
		{"a directory", dir, dir + ": neither"},
		{"a device", "/dev/null", "/dev/null: neither"},
		{"an unknown scheme", "npipe:x", "npipe:x: npipe:// is not"},
		{"a scheme like another", "binary2:///bin/true", "binary2://"},
	} {
		for stream, paths := range map[string]stdio.Stdio{"stdin": {Stdin: tt.path}, "stdout": {Stdout: tt.path}, "stderr": {Stderr: tt.path}, "stdout of a terminal": {Stdout: tt.path, Terminal: true}} {
			_, err := openStreams(t.Context(), "id", paths, owner{})
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s as %s: got %v, want %v that says %q", tt.name, stream, err, errdefs.ErrInvalidArgument, tt.says)
			}
		}
	}
	for name, paths := range map[string]stdio.Stdio{
		"a file by URI as stdin":              {Stdin: "file://" + dir + "/log"},
		"a logger as stdin":                   {Stdin: "binary:///bin/true"},
		"a logger of stderr alone":            {Stderr: "binary:///bin/true"},
		"a file by URI without a path":        {Stdout: "file:log"},
		"a file in what is no directory":      {Stdout: "file:///dev/null/log"},
		"a FIFO by file:// that nobody reads": {Stdout: "file://" + fifo(t)},
	} {
		if _, err := openStreams(t.Context(), "id", paths, owner{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v, want %v", name, err, errdefs.ErrInvalidArgument)
		}
	}
}

func TestAFileByURIIsMadeAndAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir", "a log")
	uri := (&url.URL{Scheme: "file", Path: path}).String()
	for range 2 {
		s := openTestStreams(t, stdio.Stdio{Stdout: uri, Stderr: uri})
		for i, text := range []string{"out\n", "err\n"} {
			if _, err := s.child[i+1].WriteString(text); err != nil {
				t.Fatal(err)
			}
		}
		s.drain(time.Minute)
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
	got, err := os.ReadFile(path)
	if want := "out\nerr\nout\nerr\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("got %v, %v, want mode 0644", info.Mode(), err)
	}
}

func TestAFIFOMayBeNamedByURI(t *testing.T) {
	in, out := fifo(t), fifo(t)
	s := openTestStreams(t, stdio.Stdio{Stdin: "fifo://" + in, Stdout: "fifo://" + out})
	if _, err := s.child[1].WriteString("x"); err != nil {
		t.Fatal(err)
	}
	s.handOver()
	got, err := io.ReadAll(clientEnd(t, out, unix.O_RDONLY|unix.O_NONBLOCK))
	if err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDrainWaitsForAClientThatReads(t *testing.T) {
	path := fifo(t)
	s := openTestStreams(t, stdio.Stdio{Stdout: path})
	client := clientEnd(t, path, unix.O_RDONLY|unix.O_NONBLOCK)
	const size = 50_000
	if _, err := s.child[1].Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	s.handOver()
	var read atomic.Int64
	go func() { // a slow one: ends with the output
		for buf := make([]byte, 1000); ; {
			time.Sleep(time.Millisecond)
			n, err := client.Read(buf)
			if read.Add(int64(n)); err != nil {
				return
			}
		}
	}()
	s.drain(time.Minute)
	if got := s.backlog().unread; got != 0 {
		t.Errorf("%d bytes are unread", got)
	}
}

func TestDrainGivesUpOnAClientThatDoesNotRead(t *testing.T) {
	path := fifo(t)
	s := openTestStreams(t, stdio.Stdio{Stdout: path})
	if _, err := s.child[1].WriteString("unread"); err != nil {
		t.Fatal(err)
	}
	s.handOver()
	s.drain(time.Hour)
	got, err := io.ReadAll(clientEnd(t, path, unix.O_RDONLY|unix.O_NONBLOCK))
	if err != nil || string(got) != "unread" {
		t.Errorf("got %q, %v: it is thrown away", got, err)
	}
}

// Without a reader, opening a FIFO to write to it fails: ENXIO of fifo(7).
func TestStreamsThatCannotAllBeHadAreAllClosed(t *testing.T) {
	out := fifo(t)
	if _, err := openStreams(t.Context(), "id", stdio.Stdio{Stdout: out, Stderr: filepath.Join(t.TempDir(), "none")}, owner{}); err == nil {
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
