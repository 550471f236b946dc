package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A syscallData is what the kernel shows a filter of a call: struct seccomp_data.
type syscallData struct {
	number, arch uint32
	args         [6]uint64
}

func (d syscallData) String() string { return fmt.Sprintf("%#x %x (%#x)", d.arch, d.args, d.number) }

// simulate runs a program as the kernel does, in full: what it would not have
// accepted fails the test.
func simulate(t *testing.T, program []unix.SockFilter, d syscallData) uint32 {
	t.Helper()
	var data [64]byte
	binary.LittleEndian.PutUint32(data[0:], d.number)
	binary.LittleEndian.PutUint32(data[4:], d.arch)
	for i, a := range d.args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	var a, x uint32
	var mem [unix.BPF_MEMWORDS]uint32
	for pc := 0; pc < len(program); pc++ {
		ins := program[pc]
		skip := func(cond bool) {
			if cond {
				pc += int(ins.Jt)
			} else {
				pc += int(ins.Jf)
			}
		}
		switch ins.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.LittleEndian.Uint32(data[ins.K:])
		case unix.BPF_LD | unix.BPF_MEM:
			a = mem[ins.K]
		case unix.BPF_ST:
			mem[ins.K] = a
		case unix.BPF_MISC | unix.BPF_TAX:
			x = a
		case unix.BPF_MISC | unix.BPF_TXA:
			a = x
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= ins.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(ins.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			skip(a == ins.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			skip(a >= ins.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			skip(a > ins.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			skip(a&ins.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return ins.K
		default:
			t.Fatalf("instruction %d: code %#x", pc, ins.Code)
		}
	}
	t.Fatalf("%v: the end of the program was reached", d)
	return 0
}

func raw(program []instruction) (out []unix.SockFilter) {
	for _, ins := range program {
		out = append(out, ins.SockFilter)
	}
	return out
}

// parse undoes newFilter, for the process with the given pid.
func parse(b []byte, self []int, pid int) (out []unix.SockFilter) {
	for c := range slices.Chunk(b, instructionSize) {
		out = append(out, unix.SockFilter{Code: binary.NativeEndian.Uint16(c), Jt: c[2], Jf: c[3], K: binary.NativeEndian.Uint32(c[4:])})
	}
	for _, i := range self {
		out[i].K = uint32(pid)
	}
	return out
}

const allow = unix.SECCOMP_RET_ALLOW

const testPID = 4711

// ours is our filter alone, at a stage.
func ours(t *testing.T, stage int) []unix.SockFilter {
	t.Helper()
	f, err := newFilter(compile(builtin(stage)), 0)
	if err != nil {
		t.Fatal(err)
	}
	return parse(f.Program, f.Self, testPID)
}

// meeting are arguments that meet the conditions of a rule, which are none but
// eq and maskedEq.
func meeting(conditions []condition) (args [6]uint64) {
	for _, c := range conditions {
		args[c.arg] = c.value
		if c.self {
			args[c.arg] = testPID
		}
	}
	return args
}

func TestWhatIsListedPassesAndNothingElse(t *testing.T) {
	for stage, name := range map[int]string{compiling: "compiling", loading: "loading", running: "running"} {
		t.Run(name, func(t *testing.T) {
			program := ours(t, stage)
			listed := map[uint32]bool{}
			byName := numbers()
			for _, g := range allowed(stage) {
				for _, c := range g.calls {
					n, ok := byName[c.name]
					if !ok {
						t.Errorf("%s: not known by this name", c.name)
					}
					if listed[n] && c.name != "mprotect" && c.name != "mmap" {
						t.Errorf("%s: listed twice", c.name)
					}
					listed[n] = true
					rules := c.rules
					if rules == nil {
						rules = [][]condition{nil}
					}
					for _, r := range rules {
						if got := simulate(t, program, syscallData{n, auditArch, meeting(r)}); got != allow {
							t.Errorf("%s %x: got %#x, want it to pass", c.name, meeting(r), got)
						}
					}
				}
			}
			for n := range uint32(1 << 16) {
				want := errno(unix.EPERM)
				if n > lastNumber() {
					want = errno(unix.ENOSYS)
				}
				if got := simulate(t, program, syscallData{number: n, arch: auditArch}); !listed[n] && got != want {
					t.Errorf("%d: got %#x, want %#x", n, got, want)
				}
				if got, want := simulate(t, program, syscallData{number: n | firstX32, arch: auditArch}), errno(unix.ENOSYS); got != want {
					t.Errorf("%d of x32: got %#x, want %#x", n, got, want)
				}
			}
			for _, n := range []uint32{1 << 16, 1 << 20, firstX32 - 1, firstX32, 1 << 31, 1<<32 - 1} {
				if got, want := simulate(t, program, syscallData{number: n, arch: auditArch}), errno(unix.ENOSYS); got != want {
					t.Errorf("%d: got %#x, want %#x", n, got, want)
				}
			}
			for _, arch := range []uint32{0, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM, auditArch ^ unix.AUDIT_ARCH_X86_64 ^ unix.AUDIT_ARCH_AARCH64, auditArch | 1<<29} {
				for n := range uint32(600) {
					if got := simulate(t, program, syscallData{number: n, arch: arch}); got != unix.SECCOMP_RET_KILL_PROCESS {
						t.Errorf("%d of architecture %#x: got %#x", n, arch, got)
					}
				}
			}
		})
	}
}

func TestACallPassesOnlyWithTheArgumentsThatAreNeeded(t *testing.T) {
	const anonymous = unix.MAP_ANONYMOUS | unix.MAP_PRIVATE
	for _, tt := range []struct {
		name   string
		number uint32
		args   [6]uint64
		until  int // the last stage it passes in; -1: none
	}{
		{"memory", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE, anonymous}, running},
		{"memory that is reserved", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_NONE, anonymous | unix.MAP_NORESERVE}, running},
		{"executable memory", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC, anonymous}, -1},
		{"memory that is a file", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ, unix.MAP_PRIVATE}, -1},
		{"a file's code", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_FIXED}, loading},
		{"a file's data", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_FIXED}, loading},
		{"a file's data, shared", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_FIXED}, -1},
		{"a file's code, to be changed", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_FIXED}, -1},
		{"a file's code, shared", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_SHARED | unix.MAP_FIXED}, -1},
		{"protection", unix.SYS_MPROTECT, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, running},
		{"code", unix.SYS_MPROTECT, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, loading},
		{"code that can be written", unix.SYS_MPROTECT, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC}, -1},
		{"code with a flag", unix.SYS_MPROTECT, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC | unix.PROT_GROWSDOWN}, -1},
		{"a thread", unix.SYS_CLONE, [6]uint64{threadFlags()}, running},
		{"a process", unix.SYS_CLONE, [6]uint64{uint64(unix.SIGCHLD)}, -1},
		{"a thread in a namespace", unix.SYS_CLONE, [6]uint64{threadFlags() | unix.CLONE_NEWUSER}, -1},
		{"a thread in name only", unix.SYS_CLONE, [6]uint64{threadFlags() &^ unix.CLONE_THREAD}, -1},
		{"a thread with high bits", unix.SYS_CLONE, [6]uint64{threadFlags() | 1<<32}, -1},
		{"to wait", unix.SYS_FUTEX, [6]uint64{0, 128}, running},
		{"to wake", unix.SYS_FUTEX, [6]uint64{0, 129}, running},
		{"to wake another process", unix.SYS_FUTEX, [6]uint64{0, 1}, -1},
		{"to requeue", unix.SYS_FUTEX, [6]uint64{0, 131}, -1},
		{"to lock", unix.SYS_FUTEX, [6]uint64{0, 134}, -1},
		{"a signal to itself", unix.SYS_TGKILL, [6]uint64{testPID, 1, 23}, running},
		{"a signal to another process", unix.SYS_TGKILL, [6]uint64{testPID + 1, 1, 23}, -1},
		{"a signal to pid 0", unix.SYS_TGKILL, [6]uint64{0, 1, 23}, -1},
		{"the flags of a file", unix.SYS_FCNTL, [6]uint64{0, unix.F_GETFL}, running},
		{"to set them", unix.SYS_FCNTL, [6]uint64{0, unix.F_SETFL}, running},
		{"another descriptor", unix.SYS_FCNTL, [6]uint64{0, unix.F_DUPFD}, -1},
		{"who gets signals of a file", unix.SYS_FCNTL, [6]uint64{0, unix.F_SETOWN, testPID}, -1},
		{"a filter", unix.SYS_SECCOMP, [6]uint64{unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC}, loading},
		{"a filter that logs", unix.SYS_SECCOMP, [6]uint64{unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_LOG}, loading},
		{"a filter with a listener", unix.SYS_SECCOMP, [6]uint64{unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER}, -1},
		{"a filter for one thread", unix.SYS_SECCOMP, [6]uint64{unix.SECCOMP_SET_MODE_FILTER, 0}, -1},
		{"the strict mode", unix.SYS_SECCOMP, [6]uint64{unix.SECCOMP_SET_MODE_STRICT, 0}, -1},
		{"a file in a root", unix.SYS_OPENAT2, [6]uint64{}, loading},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := syscallData{tt.number, auditArch, tt.args}
			before, further := simulate(t, ours(t, loading), d), simulate(t, raw(furtherProgram()), d)
			after := simulate(t, ours(t, running), d)
			if got, want := before == allow, tt.until >= loading; got != want {
				t.Errorf("loading: got %#x, want it to pass: %v", before, want)
			}
			if got, want := after == allow, tt.until >= running; got != want {
				t.Errorf("running: got %#x, want it to pass: %v", after, want)
			}
			// What is in force when a guest runs is the two filters that are installed.
			if got := before == allow && further == allow; got != (after == allow) {
				t.Errorf("the filters that are installed say %#x and %#x, their purpose is %#x", before, further, after)
			}
		})
	}
}

// The second filter takes away what the list for a running guest does not have,
// and nothing more.
func TestTheTwoFiltersTogetherAreTheListOfARunningGuest(t *testing.T) {
	before, further, after := ours(t, loading), raw(furtherProgram()), ours(t, running)
	for n := range uint32(600) {
		d := syscallData{number: n, arch: auditArch}
		got := simulate(t, before, d) == allow && simulate(t, further, d) == allow
		if want := simulate(t, after, d) == allow; got != want {
			t.Errorf("%d: passes: %v, want %v", n, got, want)
		}
	}
}
