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
#define SYS_EXIT_GROUP 231
#define SYS_OPENAT 257

// containerd_shim_wazero_entry is where the kernel enters the program, in place of
// the Go runtime's _rt0_amd64_linux: see the package's documentation. The stack is
// as the System V ABI has it: the number of arguments, and a pointer to each.
TEXT containerd_shim_wazero_entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ 0(SP), R12
	LEAQ 8(SP), R13
	CMPQ R12, $4
	JLT  start

	// The last one is "delete".
	MOVQ -8(R13)(R12*8), AX
	CMPL 0(AX), $0x656c6564
	JNE  start
	CMPL 3(AX), $0x00657465
	JNE  start

	// The id follows the first of "-id" and "--id" that is before the last but one.
	MOVQ $0, CX
find:
	LEAQ 2(CX), AX
	CMPQ AX, R12
	JGE  start
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
start:
	JMP _rt0_amd64_linux(SB)
