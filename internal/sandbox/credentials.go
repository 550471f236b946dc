package sandbox

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wasiCapabilities are the ones a WASI guest can make any use of: preview 1
// opens, changes and touches files, and has no call for anything else that
// capabilities(7) lists.
var wasiCapabilities = map[string]uint{
	"CAP_DAC_OVERRIDE":    unix.CAP_DAC_OVERRIDE,
	"CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"CAP_FOWNER":          unix.CAP_FOWNER,
}

// guestCapabilities is the set of the ones asked for that a guest can use.
func guestCapabilities(names []string) (set uint64) {
	for _, name := range names {
		if bit, ok := wasiCapabilities[name]; ok {
			set |= 1 << bit
		}
	}
	return set
}

// Securebits: uid 0 gets nothing for being uid 0, capabilities stay over a
// change of user (Drop narrows them itself), and none of this can be undone.
//
// Each bit is followed by the one that locks it: linux/securebits.h.
const securebits = 0b11<<0 | // SECBIT_NOROOT
	0b11<<2 | // SECBIT_NO_SETUID_FIXUP
	0b11<<6 // SECBIT_NO_CAP_AMBIENT_RAISE

// Drop takes on the user and groups of the configuration and gives up every
// capability, in every thread, but for those of the guest and, while there is a
// root file system to enter, CAP_SYS_CHROOT. It sets no_new_privs.
func (w *Walls) Drop() error {
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, securebits, 0); err != nil {
		return fmt.Errorf("securebits: %w", err)
	}
	// The bounding set bounds what an exec could give back. It is short-lived:
	// the first capability the kernel does not know ends it.
	for c := uintptr(0); ; c++ {
		err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		if err == unix.EINVAL && c > unix.CAP_CHECKPOINT_RESTORE {
			break
		}
		if err != nil {
			return fmt.Errorf("bounding set: capability %d: %w", c, err)
		}
	}
	u := w.cfg.User
	groups := make([]int, len(u.AdditionalGids))
	for i, g := range u.AdditionalGids {
		groups[i] = int(g)
	}
	// The calls of package syscall change every thread.
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("groups %v: %w", groups, err)
	}
	if err := syscall.Setresgid(int(u.GID), int(u.GID), int(u.GID)); err != nil {
		return fmt.Errorf("gid %d: %w", u.GID, err)
	}
	if err := syscall.Setresuid(int(u.UID), int(u.UID), int(u.UID)); err != nil {
		return fmt.Errorf("uid %d: %w", u.UID, err)
	}
	if u.Umask != nil {
		unix.Umask(int(*u.Umask))
	} else {
		unix.Umask(0o022)
	}
	var keep uint64
	if w.rootfs >= 0 {
		keep = guestCapabilities(w.cfg.Capabilities) | 1<<unix.CAP_SYS_CHROOT
	}
	if err := setCapabilities(keep); err != nil {
		return err
	}
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return nil
}

// DieWithParent has the kernel kill the process when the thread that started it
// ends. Every change of credentials undoes it, so it comes after them.
func DieWithParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	return nil
}

// capabilityData is on the heap, where the address given to the kernel holds.
type capabilityData struct {
	header unix.CapUserHeader
	data   [2]unix.CapUserData
}

// setCapabilities sets the permitted and effective sets of every thread, and
// empties the inheritable one.
func setCapabilities(set uint64) error {
	c := &capabilityData{header: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}}
	c.data[0].Effective, c.data[1].Effective = uint32(set), uint32(set>>32)
	c.data[0].Permitted, c.data[1].Permitted = uint32(set), uint32(set>>32)
	err := allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.header)), uintptr(unsafe.Pointer(&c.data[0])), 0)
	keep = c
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

var keep *capabilityData

// allThreads makes a system call that changes the calling thread only in every
// thread of the process.
func allThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
