#include "textflag.h"

// What the stack has below the arguments, while there is an answer to look for.
#define PATH 0
// the id in the path may have 128 bytes
#define ANSWER 144
#define ANSWERSIZE 256
#define FRAME 400

#define SYS_READ 0
#define SYS_WRITE 1
#define SYS_CLOSE 3
#define SYS_FORK 57
#define SYS_EXIT_GROUP 231
#define SYS_OPENAT 257
#define SYS_PIPE2 293

// containerd_shim_wazero_entry is where the kernel enters the program, in place of
// the Go runtime's _rt0_amd64_linux: see the package's documentation. The stack is
// as the System V ABI has it: the number of arguments, and a pointer to each.
TEXT containerd_shim_wazero_entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ 0(SP), R12
	LEAQ 8(SP), R13
	CMPQ R12, $4
	JLT  runtime

	// The first one is a flag: `compile` and `cache` have arguments of their own.
	MOVQ 8(R13), AX
	CMPB 0(AX), $'-'
	JNE  runtime

	// The last one is "start" or "delete".
	MOVQ -8(R13)(R12*8), AX
	CMPL 0(AX), $0x72617473
	JNE  other
	CMPW 4(AX), $0x0074
	JEQ  start
other:
	CMPL 0(AX), $0x656c6564
	JNE  runtime
	CMPL 3(AX), $0x00657465
	JNE  runtime

	// The id follows the first of "-id" and "--id" that is before the last but one.
	MOVQ $0, CX
find:
	LEAQ 2(CX), AX
	CMPQ AX, R12
	JGE  runtime
	MOVQ (R13)(CX*8), SI
	INCQ CX
	CMPB 0(SI), $'-'
	JNE  find
	CMPB 1(SI), $'-'
	JNE  dash
	INCQ SI
dash:
	CMPL 0(SI), $0x0064692d
	JNE  find
	MOVQ (R13)(CX*8), SI

	// "../" + id + "/deleted"
	SUBQ $FRAME, SP
	MOVL $0x002f2e2e, PATH(SP)
	LEAQ (PATH+3)(SP), DI
	MOVQ $128, CX
copy:
	MOVB (SI), AX
	CMPB AX, $0
	JEQ  copied
	CMPB AX, $'/'
	JEQ  restore
	MOVB AX, (DI)
	INCQ SI
	INCQ DI
	DECQ CX
	JNE  copy
	JMP  restore
copied:
	MOVQ $0x6574656c65642f, AX // "/delete"
	MOVQ AX, (DI)
	MOVW $0x64, 7(DI) // "d"

	MOVQ $-100, DI // AT_FDCWD
	LEAQ PATH(SP), SI
	MOVQ $0x80000, DX // O_RDONLY|O_CLOEXEC
	MOVQ $0, R10
	MOVQ $SYS_OPENAT, AX
	SYSCALL
	CMPQ AX, $0
	JLT  restore
	MOVQ AX, R12

	MOVQ R12, DI
	LEAQ ANSWER(SP), SI
	MOVQ $ANSWERSIZE, DX
	MOVQ $SYS_READ, AX
	SYSCALL
	MOVQ AX, R13
	MOVQ R12, DI
	MOVQ $SYS_CLOSE, AX
	SYSCALL
	// One that is empty, or larger than any, is for Go to look at.
	CMPQ R13, $0
	JLE  restore
	CMPQ R13, $ANSWERSIZE
	JGE  restore

	MOVQ $1, DI
	LEAQ ANSWER(SP), SI
	MOVQ R13, DX
	MOVQ $SYS_WRITE, AX
	SYSCALL
	MOVQ $0, DI
	CMPQ AX, R13
	JEQ  exit
	MOVQ $1, DI
exit:
	MOVQ $SYS_EXIT_GROUP, AX
	SYSCALL

restore:
	ADDQ $FRAME, SP
	JMP  runtime

start:
	// The pipe that the shim's answer ends with: descriptors 3 and 4, as Go expects them.
	SUBQ $16, SP
	MOVQ SP, DI
	MOVQ $0x80000, SI // O_CLOEXEC
	MOVQ $SYS_PIPE2, AX
	SYSCALL
	CMPQ AX, $0
	JNE  unforked
	MOVQ $0x400000003, AX
	CMPQ AX, 0(SP)
	JNE  close
	MOVQ $SYS_FORK, AX
	SYSCALL
	CMPQ AX, $0
	JLT  close
	JEQ  shim

	MOVQ $4, DI
	MOVQ $SYS_CLOSE, AX
	SYSCALL
wait:
	MOVQ $3, DI
	MOVQ SP, SI
	MOVQ $1, DX
	MOVQ $SYS_READ, AX
	SYSCALL
	CMPQ AX, $-4 // EINTR
	JEQ  wait
	MOVQ $0, DI
	CMPQ AX, $1
	JEQ  exit
	MOVQ $1, DI // it has said why
	JMP  exit

shim:
	// "start" becomes "serve".
	MOVQ -8(R13)(R12*8), AX
	MOVL $0x76726573, 0(AX)
	MOVB $'e', 4(AX)
	JMP  unforked

close: // what Go opens for itself is of the numbers it wants
	MOVL 0(SP), DI
	MOVQ $SYS_CLOSE, AX
	SYSCALL
	MOVL 4(SP), DI
	MOVQ $SYS_CLOSE, AX
	SYSCALL
unforked:
	ADDQ $16, SP
runtime:
	JMP _rt0_amd64_linux(SB)
