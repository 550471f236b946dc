package seccomp

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// hasX32 says whether numbers from firstX32 on are another ABI's.
const hasX32 = false
