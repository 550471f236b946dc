package seccomp

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Filters are those of one process, in the order of their installation.
type Filters struct {
	// Load comes before the first byte of a module is read.
	Load Filter `json:"load"`
	// Start comes as the guest is entered. It refuses what only loading needs. A
	// compile process has none.
	Start Filter `json:"start"`
}

var (
	loadingProgram = sync.OnceValue(func() []instruction { return compile(builtin(loading)) })
	furtherProgram = sync.OnceValue(func() []instruction { return compile(further()) })
)

// ForCompiler are the filters of a compile process.
func ForCompiler() (*Filters, error) {
	f, err := newFilter(compile(builtin(compiling)), unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	return &Filters{Load: f}, err
}

// New makes the filters of an instance process: ours and, unless it is nil, a
// profile of the OCI specification. A call is made if both let it through; of a
// call that the profile refuses, it says how. The profile means what it means to
// runc (which has libseccomp make its filters), but that
//
//   - where rules with conditions on the same call contradict each other, the
//     strictest one that applies wins, not the one that libseccomp's tree has first;
//   - a thread that is killed, or gets SIGSYS, is always the whole process: it has
//     one guest, which can handle no signal;
//   - seccomp(2) is left to our filter, which lets the process become stricter,
//     and not even that once the guest runs.
//
// As for runc, names that this architecture does not have are passed over; what
// has a name that nobody knows, our filter does not let through. As for runc, a
// profile that lists no flags at all has SECCOMP_FILTER_FLAG_SPEC_ALLOW, and so has
// ours: see RATIONALE.md, "Why may a guest's process speculate?".
//
// # Errors
//
// What cannot be made a filter of, just as it is meant.
func New(profile *specs.LinuxSeccomp) (_ *Filters, err error) {
	program, flags := loadingProgram(), uint(unix.SECCOMP_FILTER_FLAG_TSYNC)
	if profile == nil || profile.Flags == nil { // not even none of them
		flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	}
	if profile != nil {
		p, err := newPolicy(profile)
		if err != nil {
			return nil, err
		}
		more, err := filterFlags(profile)
		if err != nil {
			return nil, err
		}
		flags |= more
		program = over(compile(p), program)
	}
	var f Filters
	if f.Load, err = newFilter(program, flags); err != nil {
		return nil, err
	}
	f.Start, err = newFilter(furtherProgram(), flags&(unix.SECCOMP_FILTER_FLAG_TSYNC|harmlessFlags))
	return &f, err
}

// Actions that a profile may name. TRACE is ENOSYS where nobody traces.
var actions = []struct {
	name specs.LinuxSeccompAction
	ret  uint32
}{
	{specs.ActKill, unix.SECCOMP_RET_KILL_THREAD},
	{specs.ActKillThread, unix.SECCOMP_RET_KILL_THREAD},
	{specs.ActKillProcess, unix.SECCOMP_RET_KILL_PROCESS},
	{specs.ActTrap, unix.SECCOMP_RET_TRAP},
	{specs.ActErrno, unix.SECCOMP_RET_ERRNO},
	{specs.ActTrace, unix.SECCOMP_RET_TRACE},
	{specs.ActLog, unix.SECCOMP_RET_LOG},
	{specs.ActNotify, unix.SECCOMP_RET_USER_NOTIF},
	{specs.ActAllow, unix.SECCOMP_RET_ALLOW},
}

var operators = []struct {
	name specs.LinuxSeccompOperator
	op   op
}{
	{specs.OpEqualTo, eq}, {specs.OpNotEqual, ne}, {specs.OpLessThan, lt}, {specs.OpLessEqual, le},
	{specs.OpGreaterEqual, ge}, {specs.OpGreaterThan, gt}, {specs.OpMaskedEqual, maskedEq},
}

var flags = []struct {
	name specs.LinuxSeccompFlag
	bit  uint
}{
	{"SECCOMP_FILTER_FLAG_TSYNC", unix.SECCOMP_FILTER_FLAG_TSYNC}, // always; runc knows the name
	{specs.LinuxSeccompFlagLog, unix.SECCOMP_FILTER_FLAG_LOG},
	{specs.LinuxSeccompFlagSpecAllow, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
	{specs.LinuxSeccompFlagWaitKillableRecv, unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV}, // of a listener
}

// architectures that a profile may name: libseccomp's.
var architectures = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64,
	specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
	specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchRISCV64, specs.ArchLOONGARCH64,
}

// Actions are the names of the actions that a profile may have.
func Actions() (names []specs.LinuxSeccompAction) {
	for _, a := range actions {
		names = append(names, a.name)
	}
	return names
}

// Operators are the names of the operators that a profile may have.
func Operators() (names []specs.LinuxSeccompOperator) {
	for _, o := range operators {
		names = append(names, o.name)
	}
	return names
}

// Flags are the names of the flags that a profile may have.
func Flags() (names []specs.LinuxSeccompFlag) {
	for _, f := range flags {
		names = append(names, f.name)
	}
	return names
}

// Architectures are the names of the architectures that a profile may have.
// Whichever it has, calls are made in the manner of this one only.
func Architectures() []specs.Arch { return slices.Clone(architectures) }

// Notifies tells whether a profile leaves some calls to a listener.
func Notifies(profile *specs.LinuxSeccomp) bool {
	return profile != nil && slices.ContainsFunc(profile.Syscalls, func(s specs.LinuxSyscall) bool { return s.Action == specs.ActNotify })
}

func filterFlags(profile *specs.LinuxSeccomp) (bits uint, err error) {
	for _, name := range profile.Flags {
		bit := uint(0)
		for _, f := range flags {
			if f.name == name {
				bit = f.bit
			}
		}
		if bit == 0 {
			return 0, fmt.Errorf("seccomp: flag %q: not supported", name)
		}
		bits |= bit
	}
	const ofListener = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	if Notifies(profile) {
		bits |= ofListener
	} else if bits&unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0 {
		return 0, fmt.Errorf("seccomp: flag %s: nothing is %s", specs.LinuxSeccompFlagWaitKillableRecv, specs.ActNotify)
	}
	return bits, nil
}

// value is what a filter returns for an action.
func value(action specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	for _, a := range actions {
		if a.name != action {
			continue
		}
		if a.ret != unix.SECCOMP_RET_ERRNO && a.ret != unix.SECCOMP_RET_TRACE {
			return a.ret, nil
		}
		data := uint(unix.EPERM)
		if errnoRet != nil {
			data = *errnoRet
		}
		// The kernel takes a higher errno for the highest there is.
		if limit := uint(math.MaxUint16); data > limit {
			return 0, fmt.Errorf("errnoRet %d: more than %d", data, limit)
		}
		return a.ret | uint32(data), nil
	}
	return 0, fmt.Errorf("action %q: unknown", action)
}

// newPolicy makes a policy of a profile, as runc and libseccomp would: see [New].
func newPolicy(profile *specs.LinuxSeccomp) (p policy, err error) {
	p = policy{rules: map[uint32][]rule{}, foreign: unix.SECCOMP_RET_KILL_PROCESS}
	if p.missing, err = value(profile.DefaultAction, profile.DefaultErrnoRet); err != nil {
		return p, fmt.Errorf("seccomp: defaultAction: %w", err)
	}
	if profile.DefaultAction == specs.ActNotify {
		return p, fmt.Errorf("seccomp: defaultAction: %s: the process could not say that it has a listener", specs.ActNotify)
	}
	// libseccomp adds this architecture to those named. The calls of others are
	// refused by our own filter; x32 shares this architecture's mark.
	p.x32 = unix.SECCOMP_RET_KILL_PROCESS
	for _, a := range profile.Architectures {
		if !slices.Contains(architectures, a) {
			return p, fmt.Errorf("seccomp: architecture %q: unknown", a)
		}
		if a == specs.ArchX32 {
			p.x32 = unix.SECCOMP_RET_ALLOW
		}
	}
	byName := numbers()
	unconditional := map[uint32]bool{}
	last := uint32(0)
	for i, entry := range profile.Syscalls {
		ret, err := value(entry.Action, entry.ErrnoRet)
		if err != nil {
			return p, fmt.Errorf("seccomp: syscalls[%d] %v: %w", i, entry.Names, err)
		}
		rules, err := newRules(entry.Args, ret)
		if err != nil {
			return p, fmt.Errorf("seccomp: syscalls[%d] %v: %w", i, entry.Names, err)
		}
		for _, name := range entry.Names {
			switch {
			case name == "":
				return p, fmt.Errorf("seccomp: syscalls[%d]: an empty name", i)
			case name == "write" && entry.Action == specs.ActNotify:
				return p, fmt.Errorf("seccomp: syscalls[%d] write: %s: the process could not say that it has a listener", i, entry.Action)
			case profile.ListenerPath == "" && entry.Action == specs.ActNotify:
				return p, fmt.Errorf("seccomp: syscalls[%d] %s: %s: listenerPath is missing", i, name, entry.Action)
			}
			number, ok := byName[name]
			if !ok {
				continue
			}
			last = max(last, number)
			if ret == p.missing {
				continue // says nothing new, so nothing: runc
			}
			for _, r := range rules {
				switch {
				case unconditional[number]:
					// The first one without conditions says it all: libseccomp.
				case len(r.conditions) == 0:
					unconditional[number] = true
					p.rules[number] = []rule{r}
				default:
					p.rules[number] = append(p.rules[number], r)
				}
			}
		}
	}
	p.missing = forGuest(p.missing)
	for _, rules := range p.rules {
		for i := range rules {
			rules[i].ret = forGuest(rules[i].ret)
		}
		slices.SortStableFunc(rules, func(a, b rule) int { return cmp.Compare(strictness(a.ret), strictness(b.ret)) })
	}
	// A call that is younger than the profile is better not there than forbidden,
	// since programs know a way round then: runc.
	p.last, p.newer = math.MaxUint32, p.missing
	if p.missing&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		p.last, p.newer = last, errno(unix.ENOSYS)
	}
	if number, ok := byName["seccomp"]; ok {
		p.rules[number] = []rule{{ret: unix.SECCOMP_RET_ALLOW}}
	}
	return p, nil
}

// forGuest is what an action means for a process that is one guest.
func forGuest(ret uint32) uint32 {
	if ret == unix.SECCOMP_RET_KILL_THREAD || ret == unix.SECCOMP_RET_TRAP {
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	return ret
}

// newRules are the rules of an entry with the given arguments. Conditions on
// different arguments must all be met; where one argument has several, any one
// of the entry's suffices: runc.
func newRules(args []specs.LinuxSeccompArg, ret uint32) ([]rule, error) {
	var conditions []condition
	seen, repeated := [6]bool{}, false
	for _, a := range args {
		if a.Index >= uint(len(seen)) {
			return nil, fmt.Errorf("argument %d: a call has %d", a.Index, len(seen))
		}
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
		i := slices.IndexFunc(operators, func(o struct {
			name specs.LinuxSeccompOperator
			op   op
		}) bool {
			return o.name == a.Op
		})
		if i < 0 {
			return nil, fmt.Errorf("operator %q: unknown", a.Op)
		}
		c := condition{arg: a.Index, op: operators[i].op, value: a.Value}
		if c.op == maskedEq {
			c.mask, c.value = a.Value, a.ValueTwo
		}
		conditions = append(conditions, c)
	}
	// One that looks at no bit is none: libseccomp.
	blind := func(c condition) bool { return c.op == maskedEq && c.mask == 0 }
	if !repeated {
		return []rule{{slices.DeleteFunc(conditions, blind), ret}}, nil
	}
	var rules []rule
	for _, c := range conditions {
		rules = append(rules, rule{slices.DeleteFunc([]condition{c}, blind), ret})
	}
	return rules, nil
}

// strictness orders what filters return as the kernel does when several say
// something: the lowest one wins.
func strictness(ret uint32) int32 { return int32(ret & unix.SECCOMP_RET_ACTION_FULL) }
