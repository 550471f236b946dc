package instance

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
)

// CompileBounds is what compiling one module may take. A module that is made to
// could otherwise take all of a machine.
type CompileBounds struct {
	Memory uint64        `json:"memory"` // bytes
	CPU    time.Duration `json:"cpu"`    // of all processors together
}

// NewCompileBounds are those for a module of size bytes, of which memory is at most what
// is given: see RATIONALE.md, "What may compiling a module take?".
func NewCompileBounds(size int64, memory uint64) CompileBounds {
	return CompileBounds{
		Memory: min(256<<20+64*uint64(size), memory),
		CPU:    5*time.Minute + time.Duration(size)*time.Minute>>20,
	}
}

// exceeded says which of the bounds this process has come to, if one.
func (b CompileBounds) exceeded() error {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return fmt.Errorf("resource usage: %w", err)
	}
	// The peak is, until this process has had more, the shim's: an exec keeps it.
	cpu := time.Duration(used.Utime.Nano() + used.Stime.Nano())
	switch {
	case uint64(used.Maxrss)<<10 > b.Memory:
		return fmt.Errorf("compiling it needed more than %d MiB of memory, all that a module of its size may", b.Memory>>20)
	case cpu > b.CPU:
		return fmt.Errorf("compiling it needed more than %v of processor time, all that a module of its size may", b.CPU.Round(time.Second))
	}
	return nil
}

// compile compiles the module f into [sandbox.Attached], within bounds, and returns
// its size in bytes. After an error compiling may go on, until the process ends.
func compile(ctx context.Context, f *os.File, bounds CompileBounds) (int64, error) {
	code, err := readModule(f)
	if err != nil {
		return 0, err
	}
	debug.SetMemoryLimit(int64(bounds.Memory))
	done := make(chan error, 1)
	go func() {
		done <- writeEntry(experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0)), sandbox.Attached, code)
	}()
	for look := time.Tick(20 * time.Millisecond); ; {
		select {
		case err := <-done:
			return int64(len(code)), err
		case <-look:
			if err := bounds.exceeded(); err != nil {
				return 0, err
			}
		}
	}
}

func readModule(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	code := make([]byte, info.Size())
	if _, err := f.ReadAt(code, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read module: %w", err)
	}
	return code, nil
}
