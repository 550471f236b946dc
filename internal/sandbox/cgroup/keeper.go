package cgroup

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A keeper is a process that waits in a scope of systemd's, from Create to
// Destroy. systemd makes a scope only for a process, and removes it, figures and
// all, with the last one. With a keeper in it the scope gets its limits before
// there is a guest, the guest is born in it as in any other cgroup, and what it
// has used, and whether it ran out of memory, can be asked after its exit.
//
// It is one thread with a page of code and one of stack, and heeds no signal but
// SIGKILL: before version 253 systemd stops a scope in which the kernel has killed
// a process for want of memory, which is when its count is wanted.
type keeper struct {
	*os.Process
}

// keeperName is what a keeper is listed as.
const keeperName = "wazero-scope-keeper"

// startKeeper starts one. Nobody waits for it here: the shim's reaper does.
func startKeeper() (*keeper, error) {
	f, err := executable("keeper", keeperProgram())
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	defer f.Close()
	// It outlives a shim that is killed, and must not hold what the shim itself was
	// started with open, its socket: `delete` would take the shim to be alive.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keeper: close on exec: %w", err)
	}
	// In no directory that is to be unmounted.
	p, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), []string{keeperName},
		&os.ProcAttr{Dir: "/", Env: []string{}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	// Where memory.oom.group has the kernel kill all of a cgroup, it spares what
	// has this score. A shim that may not give it loses the figures then.
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid), []byte("-1000"), 0)
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return nil, errors.Join(fmt.Errorf("keeper: %w", err), p.Kill())
	}
	return &keeper{p}, nil
}

// executable is a file in memory that can be executed.
func executable(name string, program []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3, when all of them could be
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(program); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return f, nil
}

// keeperProgram is an ELF executable with the instructions of keeperCode.
func keeperProgram() []byte {
	const address = 0x400000
	head := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{
			0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT),
		},
		Type: uint16(elf.ET_EXEC), Machine: uint16(keeperMachine), Version: uint32(elf.EV_CURRENT),
	}
	segments := [2]elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: address, Align: 0x10000},
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)},
	}
	head.Ehsize, head.Phentsize = uint16(binary.Size(head)), uint16(binary.Size(segments[0]))
	head.Phoff, head.Phnum = uint64(head.Ehsize), uint16(len(segments))
	code := binary.Size(head) + binary.Size(segments)
	head.Entry = address + uint64(code)
	segments[0].Filesz = uint64(code + len(keeperCode))
	segments[0].Memsz = segments[0].Filesz
	var b bytes.Buffer
	for _, part := range []any{head, segments, []byte(keeperCode)} {
		_ = binary.Write(&b, binary.LittleEndian, part) // all of it of a fixed size
	}
	return b.Bytes()
}
