//go:build attack

#include "textflag.h"

// func probe(number uintptr, a, b, c, d, e, f uintptr) uintptr
TEXT ·probe(SB), NOSPLIT, $0-64
	MOVQ number+0(FP), AX
	MOVQ a+8(FP), DI
	MOVQ b+16(FP), SI
	MOVQ c+24(FP), DX
	MOVQ d+32(FP), R10
	MOVQ e+40(FP), R8
	MOVQ f+48(FP), R9
	SYSCALL
	MOVQ AX, ret+56(FP)
	RET

TEXT ·afterProbe(SB), NOSPLIT, $0-0
	RET

// func probeCode() (start, end uintptr)
TEXT ·probeCode(SB), NOSPLIT, $0-16
	LEAQ ·probe(SB), AX
	MOVQ AX, start+0(FP)
	LEAQ ·afterProbe(SB), AX
	MOVQ AX, end+8(FP)
	RET

// func foreignSyscall() int32
// getpid(2) of i386, which has another number there.
TEXT ·foreignSyscall(SB), NOSPLIT, $0-4
	MOVL $20, AX
	INT  $0x80
	MOVL AX, ret+0(FP)
	RET
