//go:build attack

#include "textflag.h"

// func probe(number uintptr, a, b, c, d, e, f uintptr) uintptr
TEXT ·probe(SB), NOSPLIT, $0-64
	MOVD number+0(FP), R8
	MOVD a+8(FP), R0
	MOVD b+16(FP), R1
	MOVD c+24(FP), R2
	MOVD d+32(FP), R3
	MOVD e+40(FP), R4
	MOVD f+48(FP), R5
	SVC
	MOVD R0, ret+56(FP)
	RET

TEXT ·afterProbe(SB), NOSPLIT, $0-0
	RET

// func probeCode() (start, end uintptr)
TEXT ·probeCode(SB), NOSPLIT, $0-16
	MOVD $·probe(SB), R0
	MOVD R0, start+0(FP)
	MOVD $·afterProbe(SB), R0
	MOVD R0, end+8(FP)
	RET

// func foreignSyscall() int32
// There is nothing to do: a process of arm64 cannot make calls of another
// architecture, it would have to be a program of that.
TEXT ·foreignSyscall(SB), NOSPLIT, $0-4
	MOVW $-1, R0
	MOVW R0, ret+0(FP)
	RET
