//go:build attack

package instance

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Every system call is made, and none happens. Before the filters under test there
// is one that answers EXFULL to what probe calls. Of two filters that both have an
// error for a call the kernel takes the newer one's: so EXFULL is what a call gets
// that the filters under test let through.

// probe makes a system call, and returns what the kernel does.
func probe(number, a, b, c, d, e, f uintptr) uintptr

// afterProbe is what comes behind it.
func afterProbe()

// probeCode is where the code of probe is.
func probeCode() (start, end uintptr)

// foreignSyscall makes a system call in the manner of another architecture.
func foreignSyscall() int32

// probed puts that filter in force, where the arguments say that it will be needed.
func probed(args []string) error {
	if len(args) < 2 || args[1] != "syscalls" {
		return nil
	}
	start, end := probeCode()
	if end>>32 != 0 || end < start || end > start+256 {
		return fmt.Errorf("probe: code from %#x to %#x", start, end)
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 8}, // struct seccomp_data: instruction_pointer
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: uint32(start), Jf: 2},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: uint32(end), Jt: 1},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EXFULL)},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("probe: %w", e)
	}
	return nil
}

// answer is what the filters say to a call.
func answer(number uintptr, a [5]uintptr) syscall.Errno {
	return syscall.Errno(-probe(number, a[0], a[1], a[2], a[3], a[4], 0))
}

// A SyscallReport is what the attack "syscalls" prints, as JSON.
type SyscallReport struct {
	// Pass are the numbers of calls that are let through whatever their arguments,
	// as it seems: with zeros, and with ones.
	Pass []int
	// Answers are how many numbers got which error; EXFULL are those of Pass, either
	// those that got another one with ones than with zeros.
	Answers map[string]int
	// X32 are the answers to the numbers of that ABI.
	X32 map[string]int
	// Arguments are the answers to certain calls with certain arguments.
	Arguments map[string]string
}

// syscallAttacks makes system calls, if the first argument says so, and does not
// return then.
//
//	syscalls          prints a SyscallReport
//	syscalls-foreign  makes a call in the manner of another architecture
//	syscalls-panic    has the Go runtime crash
//	syscalls-fault    has it handle a fault of its own
func syscallAttacks(args []string) {
	if len(args) < 2 {
		return
	}
	switch args[1] {
	case "syscalls":
		if err := json.NewEncoder(os.Stdout).Encode(everySyscall()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "syscalls-foreign":
		fmt.Println("foreign:", foreignSyscall())
		os.Exit(0)
	case "syscalls-panic":
		// On another thread, which the others are preempted for.
		go func() { panic("on purpose") }()
		for {
			runtime.Gosched()
		}
	case "syscalls-fault":
		defer func() {
			fmt.Println("recovered:", recover())
			os.Exit(0)
		}()
		var nobody *SyscallReport
		fmt.Println(len(nobody.Pass))
	}
}

func everySyscall() SyscallReport {
	r := SyscallReport{Answers: map[string]int{}, X32: map[string]int{}, Arguments: map[string]string{}}
	ones := [5]uintptr{^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0)}
	numbers := []uintptr{1 << 16, 1 << 20, 1<<30 - 1, 1<<31 - 1, 1 << 31, 1<<32 - 1}
	for n := range uintptr(4096) {
		numbers = append(numbers, n)
	}
	for _, n := range numbers {
		if runtime.GOARCH == "amd64" && (n == 335 || n == 336) {
			// uretprobe and uprobe, which the kernel shows no filter: SIGILL, but for
			// a page of its own that it maps where somebody traces the process.
			continue
		}
		zero, one := unix.ErrnoName(answer(n, [5]uintptr{})), unix.ErrnoName(answer(n, ones))
		if zero != one {
			r.Answers["either"]++
			continue
		}
		if r.Answers[zero]++; zero == "EXFULL" {
			r.Pass = append(r.Pass, int(n))
		}
	}
	for n := range uintptr(1024) {
		r.X32[unix.ErrnoName(answer(1<<30|n, [5]uintptr{}))]++
	}
	const anonymous = unix.MAP_ANONYMOUS | unix.MAP_PRIVATE
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	pid := uintptr(os.Getpid())
	for name, call := range map[string]struct {
		number uintptr
		args   [5]uintptr
	}{
		"mmap memory":            {unix.SYS_MMAP, [5]uintptr{0, 4096, unix.PROT_READ | unix.PROT_WRITE, anonymous, ^uintptr(0)}},
		"mmap code":              {unix.SYS_MMAP, [5]uintptr{0, 4096, unix.PROT_READ | unix.PROT_EXEC, anonymous, ^uintptr(0)}},
		"mmap a file":            {unix.SYS_MMAP, [5]uintptr{0, 4096, unix.PROT_READ, unix.MAP_SHARED, 0}},
		"mprotect memory":        {unix.SYS_MPROTECT, [5]uintptr{0, 4096, unix.PROT_READ | unix.PROT_WRITE}},
		"mprotect code":          {unix.SYS_MPROTECT, [5]uintptr{0, 4096, unix.PROT_READ | unix.PROT_EXEC}},
		"mprotect writable code": {unix.SYS_MPROTECT, [5]uintptr{0, 4096, unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC}},
		"clone a thread":         {unix.SYS_CLONE, [5]uintptr{thread}},
		"clone a thread, tls":    {unix.SYS_CLONE, [5]uintptr{thread | unix.CLONE_SETTLS}},
		"clone a process":        {unix.SYS_CLONE, [5]uintptr{uintptr(unix.SIGCHLD)}},
		"clone vfork":            {unix.SYS_CLONE, [5]uintptr{unix.CLONE_VM | unix.CLONE_VFORK | uintptr(unix.SIGCHLD)}},
		"clone a namespace":      {unix.SYS_CLONE, [5]uintptr{unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}},
		"futex wait":             {unix.SYS_FUTEX, [5]uintptr{0, 128}},
		"futex wake":             {unix.SYS_FUTEX, [5]uintptr{0, 129}},
		"futex shared":           {unix.SYS_FUTEX, [5]uintptr{0, 1}},
		"futex requeue pi":       {unix.SYS_FUTEX, [5]uintptr{0, 12 | 128}},
		"tgkill itself":          {unix.SYS_TGKILL, [5]uintptr{pid, pid, 23}},
		"tgkill another":         {unix.SYS_TGKILL, [5]uintptr{pid + 1, pid + 1, 23}},
		"tgkill pid -1":          {unix.SYS_TGKILL, [5]uintptr{^uintptr(0), pid, 23}},
		"fcntl getfl":            {unix.SYS_FCNTL, [5]uintptr{0, unix.F_GETFL}},
		"fcntl setfl":            {unix.SYS_FCNTL, [5]uintptr{0, unix.F_SETFL}},
		"fcntl dup":              {unix.SYS_FCNTL, [5]uintptr{0, unix.F_DUPFD}},
		"fcntl setown":           {unix.SYS_FCNTL, [5]uintptr{0, unix.F_SETOWN, 1}},
		"fcntl setpipe":          {unix.SYS_FCNTL, [5]uintptr{0, unix.F_SETPIPE_SZ, 1 << 20}},
		"seccomp filter":         {unix.SYS_SECCOMP, [5]uintptr{unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC}},
	} {
		if e := answer(call.number, call.args); e == unix.EXFULL {
			r.Arguments[name] = "passes"
		} else {
			r.Arguments[name] = unix.ErrnoName(e)
		}
	}
	return r
}
