#include "textflag.h"

// What the stack has below the arguments, while there is an answer to look for.
#define PATH 8
// the id in the path may have 128 bytes
#define ANSWER 152
#define ANSWERSIZE 256
#define FRAME 416

#define SYS_OPENAT 56
#define SYS_CLOSE 57
#define SYS_PIPE2 59
#define SYS_READ 63
#define SYS_WRITE 64
#define SYS_EXIT_GROUP 94
#define SYS_CLONE 220

// containerd_shim_wazero_entry is where the kernel enters the program, in place of
// the Go runtime's _rt0_arm64_linux: see the package's documentation. The stack has
// the number of arguments, and a pointer to each.
TEXT containerd_shim_wazero_entry(SB),NOSPLIT|NOFRAME,$0
	MOVD 0(RSP), R19
	ADD  $8, RSP, R20
	CMP  $4, R19
	BLT  runtime

	// The first one is a flag: `compile` and `cache` have arguments of their own.
	MOVD  8(R20), R0
	MOVBU 0(R0), R1
	CMPW  $0x2d, R1
	BNE   runtime

	// The last one is "start" or "delete".
	SUB   $1, R19, R1
	MOVD  (R20)(R1<<3), R0
	MOVWU 0(R0), R1
	MOVD  $0x72617473, R2
	CMPW  R1, R2
	BNE   other
	MOVHU 4(R0), R2
	CMPW  $0x74, R2
	BEQ   start
other:
	MOVD  $0x656c6564, R2
	CMPW  R1, R2
	BNE   runtime
	MOVWU 3(R0), R1
	MOVD  $0x00657465, R2
	CMPW  R1, R2
	BNE   runtime

	// The id follows the first of "-id" and "--id" that is before the last but one.
	MOVD $0, R3
	MOVD $0x0064692d, R4
find:
	ADD   $2, R3, R1
	CMP   R19, R1
	BGE   runtime
	MOVD  (R20)(R3<<3), R0
	ADD   $1, R3
	MOVBU 0(R0), R1
	CMPW  $0x2d, R1
	BNE   find
	MOVBU 1(R0), R1
	CMPW  $0x2d, R1
	BNE   dash
	ADD   $1, R0
dash:
	MOVWU 0(R0), R1
	CMPW  R1, R4
	BNE   find
	MOVD  (R20)(R3<<3), R0

	// "../" + id + "/deleted"
	SUB  $FRAME, RSP
	MOVD $0x002f2e2e, R1
	MOVW R1, PATH(RSP)
	ADD  $(PATH+3), RSP, R2
	MOVD $128, R3
copy:
	MOVBU (R0), R1
	CBZW  R1, copied
	CMPW  $0x2f, R1
	BEQ   restore
	MOVB  R1, (R2)
	ADD   $1, R0
	ADD   $1, R2
	SUB   $1, R3
	CBNZ  R3, copy
	B     restore
copied:
	MOVD $0x6574656c65642f, R1 // "/delete"
	MOVD R1, (R2)
	MOVD $0x64, R1 // "d"
	MOVH R1, 7(R2)

	MOVD $-100, R0 // AT_FDCWD
	ADD  $PATH, RSP, R1
	MOVD $0x80000, R2 // O_RDONLY|O_CLOEXEC
	MOVD $0, R3
	MOVD $SYS_OPENAT, R8
	SVC
	TBNZ $63, R0, restore
	MOVD R0, R21

	ADD  $ANSWER, RSP, R1
	MOVD $ANSWERSIZE, R2
	MOVD $SYS_READ, R8
	SVC
	MOVD R0, R22
	MOVD R21, R0
	MOVD $SYS_CLOSE, R8
	SVC
	// One that is empty, or larger than any, is for Go to look at.
	CMP $0, R22
	BLE restore
	CMP $ANSWERSIZE, R22
	BGE restore

	MOVD $1, R0
	ADD  $ANSWER, RSP, R1
	MOVD R22, R2
	MOVD $SYS_WRITE, R8
	SVC
	MOVD R0, R1
	MOVD $0, R0
	CMP  R1, R22
	BEQ  exit
	MOVD $1, R0
exit:
	MOVD $SYS_EXIT_GROUP, R8
	SVC

restore:
	ADD $FRAME, RSP
	B   runtime

start:
	// The pipe that the shim's answer ends with: descriptors 3 and 4, as Go expects them.
	SUB  $16, RSP
	MOVD RSP, R0
	MOVD $0x80000, R1 // O_CLOEXEC
	MOVD $SYS_PIPE2, R8
	SVC
	CBNZ R0, unforked
	MOVD 0(RSP), R0
	MOVD $0x400000003, R1
	CMP  R0, R1
	BNE  close
	MOVD $17, R0 // SIGCHLD, as fork(2)
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $SYS_CLONE, R8
	SVC
	TBNZ $63, R0, close
	CBZ  R0, shim

	MOVD $4, R0
	MOVD $SYS_CLOSE, R8
	SVC
wait:
	MOVD $3, R0
	MOVD RSP, R1
	MOVD $1, R2
	MOVD $SYS_READ, R8
	SVC
	CMN  $4, R0 // EINTR
	BEQ  wait
	MOVD R0, R1
	MOVD $0, R0
	CMP  $1, R1
	BEQ  exit
	MOVD $1, R0 // it has said why
	B    exit

shim:
	// "start" becomes "serve".
	SUB  $1, R19, R1
	MOVD (R20)(R1<<3), R0
	MOVD $0x76726573, R1
	MOVW R1, 0(R0)
	MOVD $0x65, R1
	MOVB R1, 4(R0)
	B    unforked

close: // what Go opens for itself is of the numbers it wants
	MOVWU 0(RSP), R0
	MOVD  $SYS_CLOSE, R8
	SVC
	MOVWU 4(RSP), R0
	MOVD  $SYS_CLOSE, R8
	SVC
unforked:
	ADD $16, RSP
runtime:
	B _rt0_arm64_linux(SB)
