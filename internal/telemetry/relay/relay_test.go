package relay

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
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
	rec, err := NewRecorder(w)
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
	rec.Record(ModuleTranslate, began, errors.New("two\nlines"), map[string]any{ModuleSize: 7})
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
		{Name: ModuleTranslate, Start: began.UnixNano(), Attrs: map[string]any{ModuleSize: 7.0}, Error: "two\nlines", ErrorType: "*errors.errorString"},
		{Name: ModuleLoad, Start: began.UnixNano()},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestLongTextsAreCutSoThatTheLineIsOneWrite(t *testing.T) {
	for _, tt := range []struct {
		name, char string
		want       int // bytes of the error that are left
	}{
		{"of letters", "x", MaxText},
		{"that JSON makes longer", "\x01", MaxText / 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, rec := newTestRecorder(t)
			text := strings.Repeat(tt.char, 20*MaxFrame)
			attrs := map[string]any{ModuleFunction: text, ModuleSize: 7}
			rec.Record(ModuleLoad, time.Now(), errors.New(text), attrs)
			if attrs[ModuleFunction] != text {
				t.Error("the caller's attributes have changed")
			}
			got := frames(t, r, rec)
			if len(got) != 1 || got[0].Error != text[:tt.want] || got[0].Attrs[ModuleFunction] != text[:tt.want] || got[0].Attrs[ModuleSize] != 7.0 {
				t.Errorf("got %+v, want one with %d bytes of each text", got, tt.want)
			}
		})
	}
}

func TestAFrameThatCannotBeWrittenIsLost(t *testing.T) {
	r, rec := newTestRecorder(t)
	rec.Record(ModuleLoad, time.Now(), nil, map[string]any{strings.Repeat("x", MaxFrame): "x"})
	rec.Record(ModuleLoad, time.Now(), nil, map[string]any{"x": make(chan int)})
	rec.Record(ModuleStart, time.Now(), nil, nil)
	got := frames(t, r, rec)
	if len(got) != 1 || got[0].Name != ModuleStart {
		t.Errorf("got %v, want only the last", got)
	}
}

// That it comes to an end is half of the test: nobody reads.
func TestNoFrameIsTornWhereThePipeIsFull(t *testing.T) {
	r, rec := newTestRecorder(t)
	for range 40 { // 40 times 4 KiB are more than the 64 KiB of a pipe
		rec.Record(ModuleLoad, time.Now(), errors.New(strings.Repeat("\x01", 500)), nil)
	}
	got := frames(t, r, rec) // fails for half a frame
	if len(got) == 0 || len(got) >= 40 {
		t.Errorf("got %d frames, want some and not all", len(got))
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
	rec.Record(ModuleLoad, time.Now(), nil, nil)
}

func TestARecorderNeedsAPipe(t *testing.T) {
	_, w := newPipe(t)
	w.Close()
	if _, err := NewRecorder(w); err == nil {
		t.Error("got no error")
	}
}

type trap struct{ error }

func (trap) ErrorType() string { return "trap" }

func TestAnErrorSaysItsTypeOrHasOne(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("run: %w", trap{errors.New("unreachable")}), "trap"},
		{fmt.Errorf("open: %w", &os.PathError{Err: unix.ENOENT}), "syscall.Errno"},
		{fmt.Errorf("x: %w", errors.New("y")), "*errors.errorString"},
		{errors.Join(errors.New("x"), errors.New("y")), "*errors.joinError"},
	} {
		if got := errorType(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
}
