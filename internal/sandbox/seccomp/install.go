//go:build !nowalls

package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Install puts the filter in force for all threads of the process, and all that
// will be: they must have no_new_privs. It cannot be taken off. The descriptor is
// the listener's, where [Notifies] said so, else -1.
func (f Filter) Install() (listener int, err error) {
	program := make([]unix.SockFilter, 0, len(f.Program)/instructionSize)
	for b := range slices.Chunk(f.Program, instructionSize) {
		program = append(program, unix.SockFilter{
			Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:]),
		})
	}
	if len(program) == 0 {
		return -1, errors.New("seccomp: no filter")
	}
	for _, i := range f.Self {
		program[i].K = uint32(os.Getpid())
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	result, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&prog))) //nolint:gosec // nobody wraps the call
	switch {
	case errno != 0:
		return -1, fmt.Errorf("seccomp: %w", errno)
	case f.Flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0:
		return int(result), nil
	case result != 0:
		return -1, fmt.Errorf("seccomp: thread %d cannot be given the filter", result)
	}
	return -1, nil
}
