package instance

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxMemory is as large as the memory of a guest can be, bytes.
const maxMemory = 1 << 32

// A MemorySize is how large the memory of a guest has grown, in bytes. The instance
// process writes it to a file in memory, at each growth; for that it costs no system
// call. It is a figure and no more: a process that was broken into may write another.
type MemorySize struct {
	f    *os.File       // the shim's end
	word *atomic.Uint64 // the process's end
}

// NewMemorySize makes the file that an instance process is given as [MemoryFD]. The
// caller closes both results.
func NewMemorySize() (_ *os.File, _ *MemorySize, err error) {
	fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// Its one page is the shim's to pay for.
	if _, err := f.Write(make([]byte, os.Getpagesize())); err != nil {
		return nil, nil, fmt.Errorf("memfd: %w", err)
	}
	// Nobody can make it one that takes memory.
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, nil, fmt.Errorf("memfd: seal: %w", err)
	}
	theirs, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(theirs), "memory"), &MemorySize{f: f}, nil
}

// openMemorySize maps the file that NewMemorySize made, and closes it.
func openMemorySize(f *os.File) (*MemorySize, error) {
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("memory size: %w", err)
	}
	return &MemorySize{word: (*atomic.Uint64)(unsafe.Pointer(&page[0]))}, nil
}

// set is a guest's memory of that many bytes.
func (s *MemorySize) set(bytes uint64) {
	if s != nil {
		s.word.Store(bytes)
	}
}

// Get is the size, 4 GiB at most; 0 before there is a memory, and once this is closed.
//
// It reads the file: a mapping would be the shim's to fault at.
func (s *MemorySize) Get() uint64 {
	var word [8]byte
	if s == nil {
		return 0
	}
	if _, err := s.f.ReadAt(word[:], 0); err != nil {
		return 0
	}
	return min(binary.NativeEndian.Uint64(word[:]), maxMemory)
}

// Close frees the shim's end.
func (s *MemorySize) Close() error {
	if s == nil {
		return nil
	}
	return s.f.Close()
}
