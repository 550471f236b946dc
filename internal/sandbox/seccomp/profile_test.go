package seccomp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	contrib "github.com/containerd/containerd/v2/contrib/seccomp"
	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// byLibseccomp is the program that runc would install for a profile: what it does
// before it asks libseccomp is done here. Nil is for one that libseccomp refuses.
func byLibseccomp(t *testing.T, p *specs.LinuxSeccomp) []unix.SockFilter {
	t.Helper()
	path, err := filepath.Abs("../../../bin/libseccomp")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		const why = "needs libseccomp: make bin/libseccomp"
		if os.Getenv("TEST_ROOT") != "" || os.Getenv("CI") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	operators := map[specs.LinuxSeccompOperator]int{ // enum scmp_compare
		specs.OpNotEqual: 1, specs.OpLessThan: 2, specs.OpLessEqual: 3, specs.OpEqualTo: 4,
		specs.OpGreaterEqual: 5, specs.OpGreaterThan: 6, specs.OpMaskedEqual: 7,
	}
	action := func(a specs.LinuxSeccompAction, errnoRet *uint) uint32 {
		data := uint32(unix.EPERM)
		if errnoRet != nil {
			data = uint32(*errnoRet)
		}
		switch a {
		case specs.ActErrno:
			return unix.SECCOMP_RET_ERRNO | data
		case specs.ActTrace:
			return unix.SECCOMP_RET_TRACE | data
		}
		return map[specs.LinuxSeccompAction]uint32{
			specs.ActKill: unix.SECCOMP_RET_KILL_THREAD, specs.ActKillThread: unix.SECCOMP_RET_KILL_THREAD, specs.ActKillProcess: unix.SECCOMP_RET_KILL_PROCESS,
			specs.ActTrap: unix.SECCOMP_RET_TRAP, specs.ActLog: unix.SECCOMP_RET_LOG, specs.ActNotify: unix.SECCOMP_RET_USER_NOTIF, specs.ActAllow: unix.SECCOMP_RET_ALLOW,
		}[a]
	}
	var in bytes.Buffer
	byDefault := action(p.DefaultAction, p.DefaultErrnoRet)
	fmt.Fprintf(&in, "D %d\n", byDefault)
	byName := numbers()
	for _, call := range p.Syscalls {
		act := action(call.Action, call.ErrnoRet)
		if act == byDefault {
			continue
		}
		count := map[uint]int{}
		for _, a := range call.Args {
			count[a.Index]++
		}
		alone := slices.ContainsFunc(call.Args, func(a specs.LinuxSeccompArg) bool { return count[a.Index] > 1 })
		for _, name := range call.Names {
			number, ok := byName[name]
			if !ok {
				continue
			}
			fmt.Fprintf(&in, "R %d %d", act, number)
			for i, a := range call.Args {
				if alone && i > 0 {
					fmt.Fprintf(&in, "\nR %d %d", act, number)
				}
				fmt.Fprintf(&in, " %d %d %d %d", a.Index, operators[a.Op], a.Value, a.ValueTwo)
			}
			fmt.Fprintln(&in)
		}
	}
	cmd := exec.CommandContext(t.Context(), path)
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		return nil
	}
	return parse(out, nil, 0)
}

// samples are argument values that show what conditions do: each value of the
// profile and its neighbours, whole and by halves.
func samples(p *specs.LinuxSeccomp) (values []uint64) {
	values = []uint64{0, 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 63, math.MaxUint64}
	for _, call := range p.Syscalls {
		for _, a := range call.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				values = append(values, v, v-1, v+1, v+1<<32, v-1<<32, ^v, uint64(uint32(v)), v<<32)
			}
		}
	}
	slices.Sort(values)
	return slices.Compact(values)
}

// compare looks for calls of which our program for a profile and libseccomp's say
// different things. It is false where libseccomp has none.
func compare(t *testing.T, p *specs.LinuxSeccomp, random *rand.Rand) bool {
	t.Helper()
	policy, err := newPolicy(p)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := raw(compile(policy)), byLibseccomp(t, p)
	if theirs == nil {
		return false
	}
	byName := numbers()
	newest := uint32(0)
	for _, call := range p.Syscalls {
		for _, name := range call.Names {
			newest = max(newest, byName[name])
		}
	}
	values := samples(p)
	check := func(d syscallData) {
		got, want := simulate(t, mine, d), forGuest(simulate(t, theirs, d))
		if p.DefaultAction == specs.ActErrno && d.arch == auditArch && d.number > newest && d.number < firstX32 {
			want = errno(unix.ENOSYS) // runc
		}
		if got != want {
			t.Errorf("%v: got %#x, want %#x", d, got, want)
		}
	}
	for n := range uint32(700) {
		if n == unix.SYS_SECCOMP {
			continue // ours alone
		}
		check(syscallData{number: n, arch: auditArch})
		if len(policy.rules[n]) == 0 || len(policy.rules[n][0].conditions) == 0 {
			continue
		}
		for range 200 {
			d := syscallData{number: n, arch: auditArch}
			for i := range d.args {
				d.args[i] = values[random.IntN(len(values))]
			}
			check(d)
		}
	}
	for _, d := range []syscallData{
		{number: firstX32, arch: auditArch}, {number: firstX32 + 512, arch: auditArch},
		{number: 1, arch: unix.AUDIT_ARCH_I386}, {number: 1, arch: unix.AUDIT_ARCH_ARM}, {number: 1},
	} {
		if slices.Contains(p.Architectures, specs.ArchX32) && d.number >= firstX32 {
			continue // what it says, our own filter refuses
		}
		check(d)
	}
	return true
}

func testRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// profiles are those that people have.
func profiles(t *testing.T) map[string]*specs.LinuxSeccomp {
	t.Helper()
	withCapabilities := func(names ...string) *specs.Spec {
		return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: names}}, Linux: &specs.Linux{}}
	}
	all := map[string]*specs.LinuxSeccomp{
		"containerd's, no capability":    contrib.DefaultProfile(withCapabilities()),
		"containerd's, all those it has": contrib.DefaultProfile(withCapabilities("CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_SYS_NICE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON")),
	}
	docker, err := moby.GetDefaultProfile(withCapabilities())
	if err != nil {
		t.Fatal(err)
	}
	all["Docker's"] = docker
	return all
}

func TestTheProfilesThatPeopleHaveMeanWhatLibseccompSays(t *testing.T) {
	for name, p := range profiles(t) {
		t.Run(name, func(t *testing.T) {
			if !compare(t, p, testRandom(1)) {
				t.Error("libseccomp does not take it")
			}
		})
	}
}

// randomProfile is one of which libseccomp says what it should: where a call has
// several rules that look at different arguments or at ranges, the tree that it
// makes of them (2.5.4) applies some where no rule does. So a call has either one
// entry, of any kind, or many, that compare one argument with numbers.
func randomProfile(random *rand.Rand) *specs.LinuxSeccomp {
	pick := func(n int) int { return random.IntN(n) }
	p := &specs.LinuxSeccomp{DefaultAction: actions[pick(len(actions))].name, ListenerPath: "/agent"}
	if p.DefaultAction == specs.ActNotify {
		p.DefaultAction = specs.ActLog
	}
	if pick(2) == 0 {
		p.DefaultErrnoRet = new(uint(pick(3)))
	}
	if pick(2) == 0 {
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	}
	names := []string{"read", "write", "mmap", "ioctl", "clone", "personality", "futex", "openat2", "no_such_call", "socketcall"}
	values := []uint64{0, 1, 2, 0x7e020000, 0xfffffffe, 0xffffffff, 1 << 32, 1<<32 + 1, 1 << 63, math.MaxUint64, random.Uint64()}
	many := pick(2) == 0
	for range pick(12) {
		call := specs.LinuxSyscall{Action: actions[pick(len(actions))].name}
		if pick(3) == 0 {
			call.ErrnoRet = new(uint(pick(3)))
		}
		if many {
			call.Names = []string{names[pick(3)], names[pick(len(names))]}
			for range pick(4) {
				call.Args = append(call.Args, specs.LinuxSeccompArg{Index: 1, Op: specs.OpEqualTo, Value: values[pick(len(values))]})
			}
		} else if len(names) > 0 {
			i := pick(len(names))
			call.Names, names = names[i:i+1:i+1], slices.Delete(slices.Clone(names), i, i+1)
			for _, index := range random.Perm(6)[:pick(7)] {
				call.Args = append(call.Args, specs.LinuxSeccompArg{
					Index: uint(index), Op: operators[pick(len(operators))].name,
					Value: values[pick(len(values))], ValueTwo: values[pick(len(values))],
				})
			}
		}
		if call.Action == specs.ActNotify && slices.Contains(call.Names, "write") {
			call.Action = specs.ActTrace
		}
		p.Syscalls = append(p.Syscalls, call)
	}
	return p
}

func TestAnyProfileMeansWhatLibseccompSays(t *testing.T) {
	compared := 0
	for seed := range uint64(400) {
		p := randomProfile(testRandom(seed))
		if compare(t, p, testRandom(seed)) {
			compared++
		}
		if t.Failed() {
			text, _ := json.MarshalIndent(p, "", "\t")
			t.Fatalf("seed %d: %s", seed, text)
		}
	}
	if compared < 300 {
		t.Errorf("libseccomp has refused all but %d profiles", compared)
	}
}

func TestOfRulesThatContradictEachOtherTheStrictestWins(t *testing.T) {
	arg := func(index uint, op specs.LinuxSeccompOperator, value uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: index, Op: op, Value: value, ValueTwo: value}}
	}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"ioctl"}, Action: specs.ActAllow, Args: arg(1, specs.OpGreaterThan, 10)},
		{Names: []string{"ioctl"}, Action: specs.ActLog, Args: arg(1, specs.OpMaskedEqual, 1)},
		{Names: []string{"ioctl"}, Action: specs.ActKillProcess, Args: arg(2, specs.OpLessThan, 5)},
		{Names: []string{"ioctl"}, Action: specs.ActAllow, Args: arg(2, specs.OpEqualTo, 3)},
	}}
	policy, err := newPolicy(p)
	if err != nil {
		t.Fatal(err)
	}
	program := raw(compile(policy))
	for _, tt := range []struct {
		one, two uint64
		want     uint32
	}{
		{12, 9, allow},
		{13, 9, unix.SECCOMP_RET_LOG},
		{13, 4, unix.SECCOMP_RET_KILL_PROCESS},
		{2, 3, unix.SECCOMP_RET_KILL_PROCESS},
		{2, 9, errno(unix.EPERM)},
	} {
		if got := simulate(t, program, syscallData{unix.SYS_IOCTL, auditArch, [6]uint64{0, tt.one, tt.two}}); got != tt.want {
			t.Errorf("%d, %d: got %#x, want %#x", tt.one, tt.two, got, tt.want)
		}
	}
}

func TestOfTwoFiltersTheStricterOneHasItsWay(t *testing.T) {
	mine := ours(t, loading)
	for seed := range uint64(60) {
		p := randomProfile(testRandom(seed))
		policy, err := newPolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		f, err := New(p)
		if err != nil {
			t.Fatal(err)
		}
		both, upper := parse(f.Load.Program, f.Load.Self, testPID), raw(compile(policy))
		random, values := testRandom(seed), append(samples(p), testPID, threadFlags(), 128, 129)
		for n := range uint32(500) {
			for range 10 {
				d := syscallData{number: n, arch: auditArch}
				for i := range d.args {
					d.args[i] = values[random.IntN(len(values))]
				}
				got, want := simulate(t, both, d), simulate(t, upper, d)
				if other := simulate(t, mine, d); strictness(other) < strictness(want) {
					want = other
				}
				if got != want {
					t.Fatalf("seed %d: %v: got %#x, want %#x", seed, d, got, want)
				}
			}
		}
	}
}

func TestAProfileIsRefusedForWhatItCannotMean(t *testing.T) {
	call := func(c specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{c}}
	}
	arg := func(a specs.LinuxSeccompArg) *specs.LinuxSeccomp {
		return call(specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{a}})
	}
	var many []specs.LinuxSyscall
	for i := range uint64(maxProgram / 4) {
		many = append(many, specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: i}}})
	}
	for _, tt := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		says    string
	}{
		{"no default action", &specs.LinuxSeccomp{}, `defaultAction: action "": unknown`},
		{"an unknown default action", &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_MAYBE"}, `defaultAction: action "SCMP_ACT_MAYBE": unknown`},
		{"an unknown architecture", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_PDP11"}}, `architecture "SCMP_ARCH_PDP11"`},
		{"an unknown flag", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NONE"}}, `flag "SECCOMP_FILTER_FLAG_NONE"`},
		{"an unknown action", call(specs.LinuxSyscall{Names: []string{"ioctl"}, Action: "SCMP_ACT_MAYBE"}), `syscalls[0] [ioctl]: action "SCMP_ACT_MAYBE"`},
		{"an empty name", call(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActErrno}), "syscalls[0]: an empty name"},
		{"an unknown operator", arg(specs.LinuxSeccompArg{Op: "SCMP_CMP_LIKE"}), `syscalls[0] [ioctl]: operator "SCMP_CMP_LIKE"`},
		{"a seventh argument", arg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo}), "argument 6"},
		{"an errno that is none", call(specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActErrno, ErrnoRet: new(uint(1 << 16))}), "errnoRet 65536"},
		{"a listener for everything", &specs.LinuxSeccomp{DefaultAction: specs.ActNotify, ListenerPath: "/agent"}, "defaultAction: SCMP_ACT_NOTIFY"},
		{"a listener for write", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/agent", Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "write"}, Action: specs.ActNotify}}}, "syscalls[0] write: SCMP_ACT_NOTIFY"},
		{"a listener that is nowhere", call(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActNotify}), "syscalls[0] read: SCMP_ACT_NOTIFY: listenerPath is missing"},
		{"a flag of a listener that is none", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, "nothing is SCMP_ACT_NOTIFY"},
		{"more than the kernel takes", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: many}, "instructions"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.profile); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want an error that says %s", err, tt.says)
			}
		})
	}
}

// A filter without SPEC_ALLOW has a kernel before 5.16 turn off speculation for the
// whole process: bare wazero, and a container of runc's, are not slowed by that.
func TestSpeculationIsForbiddenOnlyByAProfileThatSaysItsFlags(t *testing.T) {
	compiler, err := ForCompiler()
	if err != nil {
		t.Fatal(err)
	}
	if compiler.Load.Flags&unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW == 0 {
		t.Error("the filter of a compile process forbids it")
	}
	profile := func(flags ...specs.LinuxSeccompFlag) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: flags}
	}
	for _, tt := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		want    bool
	}{
		{"no profile", nil, true},
		{"a profile without flags", profile(), true},
		{"a profile with an empty list of them", profile([]specs.LinuxSeccompFlag{}...), false},
		{"a profile with another one", profile(specs.LinuxSeccompFlagLog), false},
		{"a profile that allows it", profile(specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := New(tt.profile)
			if err != nil {
				t.Fatal(err)
			}
			for which, flags := range map[string]uint{"first": f.Load.Flags, "second": f.Start.Flags} {
				if got := flags&unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW != 0; got != tt.want {
					t.Errorf("the %s filter lets it speculate: %v, want %v", which, got, tt.want)
				}
			}
		})
	}
}
