package instance

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// configOffset is where the Config begins in its file. Before it is the page of a
// [MemoryLimit].
var configOffset = os.Getpagesize()

// A MemoryLimit is how much memory the container of an instance process may have, in bytes;
// 0 is no limit. It may change while the guest runs: it is in a page that the shim
// shares with the process, which can read it and has no way to write it.
type MemoryLimit struct {
	mu   sync.Mutex
	page []byte // guarded by mu; nil once closed
}

// NewConfig makes the file that an instance process is given as [ConfigFD]. The
// caller closes both results.
func NewConfig(cfg Config, memoryLimit uint64) (_ *os.File, _ *MemoryLimit, err error) {
	data, err := json.Marshal(cfg)
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.MemfdCreate("config", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "config")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if _, err := f.WriteAt(data, int64(configOffset)); err != nil {
		return nil, nil, fmt.Errorf("memfd: %w", err)
	}
	page, err := unix.Mmap(fd, 0, configOffset, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd: map: %w", err)
	}
	l := &MemoryLimit{page: page}
	l.value().Store(memoryLimit)
	// Of all that has the file from now on, only the page above can be written; and
	// the file cannot be cut short, at which the shim's next write would end it.
	const seals = unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		l.Close()
		return nil, nil, fmt.Errorf("memfd: seal: %w", err)
	}
	return f, l, nil
}

// readConfig reads the file that NewConfig made.
func readConfig(f *os.File) (cfg Config, _ *MemoryLimit, err error) {
	data, err := io.ReadAll(io.NewSectionReader(f, int64(configOffset), 1<<62))
	if err != nil {
		return cfg, nil, err
	}
	if err := json.Unmarshal(data, &cfg); err != nil {
		return cfg, nil, err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, configOffset, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return cfg, nil, fmt.Errorf("map: %w", err)
	}
	return cfg, &MemoryLimit{page: page}, nil
}

func (l *MemoryLimit) value() *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&l.page[0]))
}

// Get is the limit in force.
func (l *MemoryLimit) Get() uint64 { return l.value().Load() }

// Set changes the limit. On the other side's it is a fault; it does nothing once
// the limit is closed.
func (l *MemoryLimit) Set(bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page != nil {
		l.value().Store(bytes)
	}
}

// Close frees this side's view of the page.
func (l *MemoryLimit) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return nil
	}
	err := unix.Munmap(l.page)
	l.page = nil
	if err != nil {
		return fmt.Errorf("unmap: %w", err)
	}
	return nil
}
