package seccomp

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// A group is system calls that a process needs for one reason.
type group struct {
	reason string
	calls  []call
}

// A call is let through if, where it has rules, one of them applies.
type call struct {
	name  string // one that an architecture does not have is left out there
	rules [][]condition
}

func calls(names ...string) (all []call) {
	for _, name := range names {
		all = append(all, call{name: name})
	}
	return all
}

// Instance processes run under one filter from before they read the first byte
// of a module, and under another one more as the guest is entered.
const (
	compiling = iota // in a compile process, which never runs what it compiles
	loading          // a module
	running          // a guest
)

// allowed is the whole of what a process may call: what wazero's WASI and the Go
// runtime call for a guest. What is not here, the process cannot do: no other
// program, no other process, no socket, no mount, no namespace, no tracing, no
// device control, no key, no BPF, no io_uring.
//
// A new version of Go or wazero may need more; the tests run all guests we have.
func allowed(stage int) []group {
	const wait, wake = 0 | 128, 1 | 128 // FUTEX_WAIT and FUTEX_WAKE, with FUTEX_PRIVATE_FLAG
	command := func(cmd uint64) []condition { return []condition{{arg: 1, op: eq, value: cmd}} }
	const executable = unix.PROT_READ | unix.PROT_EXEC
	notExecutable := condition{arg: 2, op: maskedEq, mask: unix.PROT_EXEC}
	groups := []group{
		{
			"memory of the Go heap and of guests: anonymous, and not executable",
			append(calls("munmap", "madvise"),
				call{"mmap", [][]condition{{notExecutable, {arg: 3, op: maskedEq, mask: unix.MAP_ANONYMOUS, value: unix.MAP_ANONYMOUS}}}},
				call{"mprotect", [][]condition{{notExecutable}}}),
		},
		{
			"threads of the Go runtime, which wait for and wake each other; no new process",
			append(calls("exit", "sched_yield", "gettid", "nanosleep"),
				call{"clone", [][]condition{{{arg: 0, op: eq, value: threadFlags()}}}},
				call{"futex", [][]condition{command(wait), command(wake)}}),
		},
		{
			"signals: the runtime preempts its own threads, and dies by one of its own when it crashes; restart_syscall is how the kernel goes on with a call after a stop",
			append(calls("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "getpid", "restart_syscall"),
				call{"tgkill", [][]condition{{{arg: 0, op: eq, self: true}}}}),
		},
		{
			"the runtime's poller, for a standard stream that is a FIFO or terminal",
			calls("epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2"),
		},
		{
			"WASI: clocks (where the vDSO cannot tell), randomness, poll_oneoff, proc_exit",
			calls("clock_gettime", "getrandom", "ppoll", "exit_group"),
		},
		{
			"WASI: descriptors",
			append(calls("read", "write", "pread64", "pwrite64", "lseek", "close", "fstat", "ftruncate", "fsync", "fdatasync", "getdents64"),
				call{"fcntl", [][]condition{command(unix.F_GETFL), command(unix.F_SETFL)}}),
		},
		{
			"WASI: paths",
			calls("openat", "newfstatat", "mkdirat", "unlinkat", "renameat", "linkat", "symlinkat", "readlinkat", "utimensat"),
		},
	}
	if stage == running {
		return groups
	}
	groups = append(groups, group{
		"compiled code is made executable, and cannot be written from then on",
		[]call{{"mprotect", [][]condition{{{arg: 2, op: eq, value: executable}}}}},
	})
	if stage == compiling {
		return append(groups, group{"what it has used is bounded, and it looks itself", calls("getrusage")})
	}
	return append(groups,
		group{
			"compiled code, and what the guest's memory has at first, are mapped from their file, so that they are in memory once",
			[]call{{"mmap", [][]condition{
				{{arg: 2, op: eq, value: executable}, {arg: 3, op: eq, value: unix.MAP_PRIVATE | unix.MAP_FIXED}},
				{{arg: 2, op: eq, value: unix.PROT_READ | unix.PROT_WRITE}, {arg: 3, op: eq, value: unix.MAP_PRIVATE | unix.MAP_FIXED}},
			}}},
		},
		group{
			"the module's file is opened in what is not yet the root; and the filter for the guest is to come",
			append(calls("openat2"), call{"seccomp", [][]condition{{
				{arg: 0, op: eq, value: unix.SECCOMP_SET_MODE_FILTER},
				{arg: 1, op: maskedEq, mask: ^uint64(harmlessFlags), value: unix.SECCOMP_FILTER_FLAG_TSYNC},
			}}}),
		},
		group{
			"how much memory the guest can be given: its own limits, to read",
			[]call{{"prlimit64", [][]condition{{{arg: 0, op: eq, value: 0}, {arg: 2, op: eq, value: 0}}}}},
		})
}

// harmlessFlags are those of seccomp(2) that a profile may ask for; none of them
// gives the process a descriptor.
const harmlessFlags = unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

// threadFlags are what the Go runtime starts a thread with: cloneFlags in
// runtime/os_linux.go and, on amd64, what runtime·clone adds.
func threadFlags() uint64 {
	const flags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	if runtime.GOARCH == "amd64" {
		return flags | unix.CLONE_SETTLS
	}
	return flags
}

// builtin is the policy of ours for a stage.
//
// What is refused has an error rather than the process killed: Go asks for
// things that it can do without, and an update of it must not end containers.
// EPERM is for what has been decided on; a call from after our time is ENOSYS, as on
// an older kernel, for which there is a way round. Calls in the manner of another
// architecture are no program's of ours: they end the process.
func builtin(stage int) policy {
	p := policy{
		rules:   map[uint32][]rule{},
		missing: errno(unix.EPERM),
		last:    lastNumber(),
		newer:   errno(unix.ENOSYS),
		x32:     errno(unix.ENOSYS), // what kernels answer that do not have them
		foreign: unix.SECCOMP_RET_KILL_PROCESS,
	}
	byName := numbers()
	for _, g := range allowed(stage) {
		for _, c := range g.calls {
			number, ok := byName[c.name]
			if !ok {
				continue
			}
			if c.rules == nil {
				c.rules = [][]condition{nil}
			}
			for _, conditions := range c.rules {
				p.rules[number] = append(p.rules[number], rule{conditions, unix.SECCOMP_RET_ALLOW})
			}
		}
	}
	return p
}

// further is the policy that makes one of loading one of running: it has only
// what differs.
func further() policy {
	p := policy{
		rules:   map[uint32][]rule{},
		missing: unix.SECCOMP_RET_ALLOW, newer: unix.SECCOMP_RET_ALLOW, x32: unix.SECCOMP_RET_ALLOW,
		foreign: unix.SECCOMP_RET_KILL_PROCESS,
	}
	before, after := builtin(loading), builtin(running)
	for number, rules := range before.rules {
		if len(rules) != len(after.rules[number]) {
			p.rules[number] = append(after.rules[number], rule{ret: after.missing})
		}
	}
	return p
}

func errno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }
