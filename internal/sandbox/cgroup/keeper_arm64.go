package cgroup

import "debug/elf"

const keeperMachine = elf.EM_AARCH64

// keeperCode calls ppoll for ever, without descriptors or a time limit and with
// all signals blocked.
const keeperCode = "\x00\x00\x80\xd2" + // mov x0, #0
	"\x01\x00\x80\xd2" + // mov x1, #0
	"\x02\x00\x80\xd2" + // mov x2, #0
	"\xa3\x00\x00\x10" + // adr x3, mask
	"\x04\x01\x80\xd2" + // mov x4, #8
	"\x28\x09\x80\xd2" + // mov x8, #73
	"\x01\x00\x00\xd4" + // svc #0
	"\xf9\xff\xff\x17" + // b, to the first
	"\xff\xff\xff\xff\xff\xff\xff\xff" // mask
