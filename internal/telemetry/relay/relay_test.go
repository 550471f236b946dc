package relay

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPipe is a pipe as a process inherits it: its descriptors block, and the Go
// runtime does not poll them.
func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "read"), os.NewFile(uintptr(fds[1]), "write")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func newTestRecorder(t *testing.T) (*os.File, *Recorder) {
	t.Helper()
	r, w := newPipe(t)
	rec, err := NewRecorder(w, "parent")
	if err != nil {
		t.Fatal(err)
	}
	return r, rec
}

// frames are all that is in the pipe.
func frames(t *testing.T, r *os.File, rec *Recorder) (frames []Frame) {
	t.Helper()
	rec.pipe.Close()
	lines := bufio.NewReaderSize(r, MaxFrame)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return frames
		}
		var f Frame
		if err := json.Unmarshal(line, &f); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		frames = append(frames, f)
	}
}

func TestASpanIsALineWithEverythingAboutIt(t *testing.T) {
	r, rec := newTestRecorder(t)
	began := time.Now()
	rec.Record(ModuleCompile, began, errors.New("two\nlines"), map[string]any{ModuleSize: 7})
	rec.Under("another")
	rec.Record(ModuleLoad, began, nil, nil)
	got := frames(t, r, rec)
	if len(got) != 2 {
		t.Fatalf("got %v, want 2 frames", got)
	}
	for i := range got {
		if got[i].End < began.UnixNano() || got[i].End > time.Now().UnixNano() {
			t.Errorf("ended at %d", got[i].End)
		}
		got[i].End = 0
	}
	want := []Frame{
		{Name: ModuleCompile, Parent: "parent", Start: began.UnixNano(), Attrs: map[string]any{ModuleSize: 7.0}, Error: "two\nlines", ErrorType: "*errors.errorString"},
		{Name: ModuleLoad, Parent: "another", Start: began.UnixNano()},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestALongErrorIsCut(t *testing.T) {
	r, rec := newTestRecorder(t)
	rec.Record(ModuleLoad, time.Now(), errors.New(strings.Repeat("x", MaxFrame)), nil)
	got := frames(t, r, rec)
	if len(got) != 1 || len(got[0].Error) != 4<<10 {
		t.Fatalf("got %d frames, want one with 4 KiB of the error", len(got))
	}
}

func TestAFrameThatWouldBeTooLongOrCannotBeWrittenIsLost(t *testing.T) {
	r, rec := newTestRecorder(t)
	rec.Record(ModuleLoad, time.Now(), nil, map[string]any{"x": strings.Repeat("x", MaxFrame)})
	rec.Record(ModuleLoad, time.Now(), nil, map[string]any{"x": make(chan int)})
	rec.Record(ModuleStart, time.Now(), nil, nil)
	got := frames(t, r, rec)
	if len(got) != 1 || got[0].Name != ModuleStart {
		t.Errorf("got %v, want only the last", got)
	}
}

// That it comes to an end is the test: nobody reads.
func TestAFullPipeDoesNotHoldUpTheGuest(t *testing.T) {
	r, rec := newTestRecorder(t)
	const records = 2000 // 2000 * 60 bytes are more than the 64 KiB of a pipe
	for range records {
		rec.Record(ModuleLoad, time.Now(), nil, nil)
	}
	if got := len(frames(t, r, rec)); got == 0 || got >= records {
		t.Errorf("got %d frames, want some and not all %d", got, records)
	}
}

func TestAPipeThatNobodyReadsAnyMoreIsNoHarm(t *testing.T) {
	r, rec := newTestRecorder(t)
	r.Close()
	rec.Record(ModuleLoad, time.Now(), nil, nil)
	if _, err := unix.Write(int(rec.pipe.Fd()), []byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v, want %v", err, unix.EPIPE)
	}
}

func TestANilRecorderRecordsNothing(_ *testing.T) {
	var rec *Recorder
	rec.Under("parent")
	rec.Record(ModuleLoad, time.Now(), nil, nil)
}

func TestARecorderNeedsAPipe(t *testing.T) {
	_, w := newPipe(t)
	w.Close()
	if _, err := NewRecorder(w, "parent"); err == nil {
		t.Error("got no error")
	}
}
