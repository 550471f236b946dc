package shim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// logged is a log whose reader the test is.
func logged(t *testing.T) (l *logPipe, r *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if l, err = newLogPipe(int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	return l, r
}

// read is all that is in the pipe now.
func read(t *testing.T, r *os.File) string {
	t.Helper()
	var all bytes.Buffer
	if err := r.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(&all, r) // ends at the deadline
	return all.String()
}

func TestALogThatNobodyReadsHoldsNobodyUp(t *testing.T) {
	l, r := logged(t)
	line := []byte(strings.Repeat("x", 200) + "\n")
	began := time.Now()
	const lines = 10_000
	for range lines {
		if n, err := l.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	kept := strings.Count(read(t, r), string(line))
	if kept == 0 || kept == lines {
		t.Fatalf("%d lines were written", kept)
	}
	if _, err := l.Write([]byte("again\n")); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s: %d lines of the log were lost: nobody read them\nagain\n", RuntimeName, lines-kept)
	if got := read(t, r); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is longer than the pipe is written as a whole when somebody reads.
func TestALongLineIsWritten(t *testing.T) {
	l, r := logged(t)
	l.patience = time.Minute // an emulated machine takes longer than a line may wait
	line := strings.Repeat("x", 1<<20) + "\n"
	got := make(chan string, 1)
	go func() {
		data := make([]byte, len(line))
		_, _ = io.ReadFull(r, data)
		got <- string(data)
	}()
	if _, err := l.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
	if <-got != line {
		t.Error("it is another")
	}
}

func TestALineThatIsTornIsOneOfItsOwn(t *testing.T) {
	l, r := logged(t)
	if _, err := l.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	read(t, r)
	if _, err := l.Write([]byte("again\n")); err != nil {
		t.Fatal(err)
	}
	want := "\n" + RuntimeName + ": 1 lines of the log were lost: nobody read them\nagain\n"
	if got := read(t, r); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// containerd may be gone, and come back to the same FIFO.
func TestALogOutlivesItsReader(t *testing.T) {
	path := t.TempDir() + "/log"
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(flags int) *os.File {
		f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	r := open(os.O_RDONLY)
	l, err := newLogPipe(int(open(os.O_WRONLY).Fd()))
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	for range 3 {
		if _, err := l.Write([]byte("lost\n")); err != nil {
			t.Fatal(err)
		}
	}
	r = open(os.O_RDONLY)
	if _, err := l.Write([]byte("here\n")); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, r), RuntimeName+": 3 lines of the log were lost: nobody read them\nhere\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
