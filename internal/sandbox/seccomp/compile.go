package seccomp

import (
	"maps"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// An op compares an argument of a call, 64 bits wide and without a sign, with a
// value.
type op int

const (
	eq op = iota
	ne
	lt
	le
	ge
	gt
	maskedEq
)

// A condition is on one argument.
type condition struct {
	arg   uint // 0 to 5
	op    op
	value uint64
	mask  uint64 // of maskedEq
	self  bool   // value is the pid of the process, which it finds out
}

// A rule says what a call returns whose arguments meet all conditions.
type rule struct {
	conditions []condition
	ret        uint32
}

// A policy says what each system call returns.
type policy struct {
	// rules are tried in turn; when none applies the default does.
	rules   map[uint32][]rule
	missing uint32 // default
	// newer is the default of numbers above last.
	last  uint32
	newer uint32
	// x32 is for amd64's other numbers.
	x32 uint32
	// foreign is for the calls of another architecture that the kernel has, too.
	foreign uint32
}

// firstX32 is the first number of the x32 ABI: __X32_SYSCALL_BIT. There is none
// on other architectures, nor any system call of so high a number.
const firstX32 = 0x40000000

// An instruction is one of a program in the making, in which every jump is
// relative and goes forward.
type instruction struct {
	unix.SockFilter
	self bool // K is to be the pid of the process
}

func statement(code uint16, k uint32) instruction {
	return instruction{SockFilter: unix.SockFilter{Code: code, K: k}}
}

func jump(code uint16, k uint32, jt, jf uint8) instruction {
	return instruction{SockFilter: unix.SockFilter{Code: unix.BPF_JMP | code, K: k, Jt: jt, Jf: jf}}
}

func ret(value uint32) instruction { return statement(unix.BPF_RET|unix.BPF_K, value) }

// Offsets in struct seccomp_data: linux/seccomp.h. Both architectures are
// little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func load(offset uint32) instruction {
	return statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset)
}

// compile makes a program of a policy. It looks for a number by halves, so that
// one of hundreds is found in some ten steps; and calls without conditions are
// decided by number and architecture alone, which the kernel finds out once when
// the program is installed and then keeps (seccomp_cache_prepare in
// kernel/seccomp.c).
func compile(p policy) []instruction {
	type segment struct {
		first uint32 // number
		body  []instruction
	}
	var segments []segment
	add := func(first uint32, body []instruction) {
		if n := len(segments); n > 0 && slices.Equal(segments[n-1].body, body) {
			return
		}
		segments = append(segments, segment{first, body})
	}
	fallback := func(number uint32) []instruction {
		if number > p.last {
			return []instruction{ret(p.newer)}
		}
		return []instruction{ret(p.missing)}
	}
	next := uint32(0)
	for _, number := range slices.Sorted(maps.Keys(p.rules)) {
		if next < number {
			add(next, fallback(next))
			if next <= p.last && p.last+1 < number {
				add(p.last+1, fallback(p.last+1))
			}
		}
		var body []instruction
		for _, r := range p.rules[number] {
			body = append(body, r.compile()...)
		}
		add(number, append(body, fallback(number)...))
		next = number + 1
	}
	add(next, fallback(next))
	if next <= p.last {
		add(p.last+1, fallback(p.last+1))
	}
	add(firstX32, []instruction{ret(p.x32)})

	var tree func(s []segment) []instruction
	tree = func(s []segment) []instruction {
		if len(s) == 1 {
			return s[0].body
		}
		half := len(s) / 2
		low, high := tree(s[:half]), tree(s[half:])
		split := []instruction{jump(unix.BPF_JGE|unix.BPF_K, s[half].first, 0, 0)}
		if len(low) <= math.MaxUint8 {
			split[0].Jt = uint8(len(low))
		} else {
			split[0].Jf = 1
			split = append(split, statement(unix.BPF_JMP|unix.BPF_JA, uint32(len(low))))
		}
		return slices.Concat(split, low, high)
	}
	return slices.Concat([]instruction{
		load(offArch),
		jump(unix.BPF_JEQ|unix.BPF_K, auditArch, 1, 0),
		ret(p.foreign),
		load(offNumber),
	}, tree(segments))
}

// compile makes the instructions of a rule. They fall through to what is behind
// them when the rule does not apply.
func (r rule) compile() []instruction {
	// What is jumped to when a condition is not met is known at the end.
	const unmet = math.MaxUint8
	var code []instruction
	for _, c := range r.conditions {
		low, high := load(offArgs+8*uint32(c.arg)), load(offArgs+8*uint32(c.arg)+4)
		lo, hi := uint32(c.value), uint32(c.value>>32)
		test := func(op uint16, k uint32, jt, jf uint8) instruction { return jump(op|unix.BPF_K, k, jt, jf) }
		switch c.op {
		case eq:
			equal := test(unix.BPF_JEQ, lo, 0, unmet)
			equal.self = c.self
			code = append(code, high, test(unix.BPF_JEQ, hi, 0, unmet), low, equal)
		case ne:
			code = append(code, high, test(unix.BPF_JEQ, hi, 0, 2), low, test(unix.BPF_JEQ, lo, unmet, 0))
		case gt:
			code = append(code, high, test(unix.BPF_JGT, hi, 3, 0), test(unix.BPF_JEQ, hi, 0, unmet), low, test(unix.BPF_JGT, lo, 0, unmet))
		case ge:
			code = append(code, high, test(unix.BPF_JGT, hi, 3, 0), test(unix.BPF_JEQ, hi, 0, unmet), low, test(unix.BPF_JGE, lo, 0, unmet))
		case lt:
			code = append(code, high, test(unix.BPF_JGT, hi, unmet, 0), test(unix.BPF_JEQ, hi, 0, 2), low, test(unix.BPF_JGE, lo, unmet, 0))
		case le:
			code = append(code, high, test(unix.BPF_JGT, hi, unmet, 0), test(unix.BPF_JEQ, hi, 0, 2), low, test(unix.BPF_JGT, lo, unmet, 0))
		case maskedEq:
			and := func(mask uint32) instruction { return statement(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, mask) }
			code = append(code,
				high, and(uint32(c.mask>>32)), test(unix.BPF_JEQ, hi&uint32(c.mask>>32), 0, unmet),
				low, and(uint32(c.mask)), test(unix.BPF_JEQ, lo&uint32(c.mask), 0, unmet))
		}
	}
	code = append(code, ret(r.ret))
	for i := range code {
		if unix.BPF_JMP != code[i].Code&0x07 {
			continue
		}
		end := uint8(len(code) - i - 1)
		if code[i].Jt == unmet {
			code[i].Jt = end
		}
		if code[i].Jf == unmet {
			code[i].Jf = end
		}
	}
	return code
}

// over is a program that lets a call through when both programs do, and returns
// what the upper one does of any other that the upper one refuses. A call that
// the upper one lets through with an action of its own (to log it, say) has
// that unless the lower one refuses it.
func over(upper, lower []instruction) []instruction {
	program := slices.Clone(upper)
	copies := map[uint32]int{} // of lower, by what it returns for "allow"
	for i, ins := range upper {
		if ins.Code != unix.BPF_RET|unix.BPF_K || refuses(ins.K) {
			continue
		}
		start, ok := copies[ins.K]
		if !ok {
			start = len(program)
			copies[ins.K] = start
			for _, low := range lower {
				if low.Code == unix.BPF_RET|unix.BPF_K && low.K == unix.SECCOMP_RET_ALLOW {
					low.K = ins.K
				}
				program = append(program, low)
			}
		}
		program[i] = statement(unix.BPF_JMP|unix.BPF_JA, uint32(start-i-1))
	}
	return program
}

// refuses tells whether a value that a filter returns has a call fail, whatever
// anybody else says.
func refuses(ret uint32) bool {
	switch ret & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE, unix.SECCOMP_RET_USER_NOTIF:
		return false
	}
	return true
}
