package seccomp

import "sync"

//go:generate go run mknumbers.go

// A syscall is a system call of this architecture, under the name that libseccomp
// knows it by.
type syscall struct {
	name   string
	number uint32
}

// numbers are the system calls by their names. An instance process has no use for
// the map, so that is made when it is asked for.
var numbers = sync.OnceValue(func() map[string]uint32 {
	all := make(map[string]uint32, len(syscalls))
	for _, s := range syscalls {
		all[s.name] = s.number
	}
	return all
})

// lastNumber is the highest there was when the table was made.
func lastNumber() uint32 { return syscalls[len(syscalls)-1].number }
