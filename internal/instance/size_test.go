package instance

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// newSizes are the two ends of a MemorySize.
func newSizes(t *testing.T) (shims, ours *MemorySize) {
	t.Helper()
	f, shims, err := NewMemorySize()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shims.Close() })
	if ours, err = openMemorySize(f); err != nil {
		t.Fatal(err)
	}
	return shims, ours
}

func TestTheShimSeesHowLargeAGuestsMemoryIs(t *testing.T) {
	shims, ours := newSizes(t)
	if got := shims.Get(); got != 0 {
		t.Errorf("%d bytes before there is a memory, want 0", got)
	}
	m, err := reserve(2*wasmPage, 10*wasmPage, func(size uint64) bool { return size <= 5*wasmPage })
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	m.show(ours)
	for _, step := range []struct{ pages, want uint64 }{{0, 2}, {3, 3}, {5, 5}, {7, 5}, {11, 5}} {
		if step.pages > 0 {
			m.Reallocate(step.pages * wasmPage)
		}
		if got := shims.Get(); got != step.want*wasmPage {
			t.Errorf("%d bytes after %d pages were asked for, want %d pages", got, step.pages, step.want)
		}
	}
	shims.Close()
	m.Reallocate(4 * wasmPage)
	if got := shims.Get(); got != 0 {
		t.Errorf("%d bytes once it is closed, want 0", got)
	}
	if err := shims.Close(); err == nil {
		t.Error("closed twice without an error")
	}
}

// What a broken process can do with it: write a figure.
func TestTheSizeOfAMemoryIsAFigureAndNoMore(t *testing.T) {
	f, shims, err := NewMemorySize()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer shims.Close()
	if _, err := f.WriteAt(binary.NativeEndian.AppendUint64(nil, 1<<60), 0); err != nil {
		t.Fatal(err)
	}
	if got := shims.Get(); got != 4<<30 {
		t.Errorf("%d bytes, want 4 GiB at most", got)
	}
	for _, size := range []int64{0, 1 << 30} {
		if err := f.Truncate(size); err == nil {
			t.Errorf("the file can be given %d bytes", size)
		}
	}
	if _, err := f.WriteAt([]byte{1}, 1<<20); err == nil {
		t.Error("the file can be written to beyond its end")
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096); err != nil {
		t.Fatal(err)
	}
	if got := shims.Get(); got != 0 {
		t.Errorf("%d bytes of an emptied file, want 0", got)
	}
}

func TestWithoutAnybodyLookingASizeIsNotShown(t *testing.T) {
	m, err := reserve(wasmPage, 2*wasmPage, always)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	m.show(nil)
	if m.Reallocate(2*wasmPage) == nil {
		t.Error("a memory that nobody looks at does not grow")
	}
	var none *MemorySize
	if none.Get() != 0 || none.Close() != nil {
		t.Error("none has a size, or cannot be closed")
	}
}
