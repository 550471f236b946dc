// Package seccomp makes the filters that say which system calls an instance
// process may make, and puts them in force: one of our own, always, and over it
// the profile of the OCI specification.
//
// The programs are made in the shim. The process is handed them complete, as
// bytes, since it is new with every container.
package seccomp

import (
	"encoding/binary"
	"fmt"
)

// maxProgram is the kernel's limit, instructions: BPF_MAXINSNS.
const maxProgram = 4096

// A Filter is a program that is ready to be installed.
type Filter struct {
	// Program has the instructions as the kernel wants them: struct sock_filter.
	Program []byte `json:"program"`
	// Self are the indexes of instructions whose constant is to be the pid of the
	// process, as it sees that itself.
	Self []int `json:"self,omitempty"`
	// Flags are those of seccomp(2).
	Flags uint `json:"flags"`
}

// instructionSize is that of struct sock_filter, bytes.
const instructionSize = 8

func newFilter(program []instruction, flags uint) (Filter, error) {
	if len(program) > maxProgram {
		return Filter{}, fmt.Errorf("%d instructions: the kernel takes %d", len(program), maxProgram)
	}
	f := Filter{Flags: flags}
	for i, ins := range program {
		f.Program = binary.NativeEndian.AppendUint16(f.Program, ins.Code)
		f.Program = append(f.Program, ins.Jt, ins.Jf)
		f.Program = binary.NativeEndian.AppendUint32(f.Program, ins.K)
		if ins.self {
			f.Self = append(f.Self, i)
		}
	}
	return f, nil
}
