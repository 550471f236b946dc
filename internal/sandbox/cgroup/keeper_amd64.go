package cgroup

import "debug/elf"

const keeperMachine = elf.EM_X86_64

// keeperCode calls ppoll for ever, without descriptors or a time limit and with
// all signals blocked.
const keeperCode = "\xb8\x0f\x01\x00\x00" + // mov $271, %eax
	"\x4c\x8d\x15\x10\x00\x00\x00" + // lea mask, %r10
	"\x41\xb8\x08\x00\x00\x00" + // mov $8, %r8d
	"\x31\xff\x31\xf6\x31\xd2" + // xor %edi, %edi; xor %esi, %esi; xor %edx, %edx
	"\x0f\x05" + // syscall
	"\xeb\xe4" + // jmp, to the first
	"\xff\xff\xff\xff\xff\xff\xff\xff" // mask
