package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// wasiCapabilities are the ones a WASI guest can make any use of: preview 1
// opens, changes and touches files, and has no call for anything else that
// capabilities(7) lists.
var wasiCapabilities = map[string]uintptr{
	"CAP_DAC_OVERRIDE":    unix.CAP_DAC_OVERRIDE,
	"CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"CAP_FOWNER":          unix.CAP_FOWNER,
}

func guestCapability(c uintptr) bool {
	for _, bit := range wasiCapabilities {
		if c == bit {
			return true
		}
	}
	return false
}

// securebits: exec gives uid 0 nothing for being uid 0. Each bit is followed by
// the one that locks it: linux/securebits.h.
const securebits = 0b11 << 0 // SECBIT_NOROOT

// setCredentials has a process started with attr be the user of cfg, with those
// capabilities of the ones named that a guest can use. They are ambient, which
// is the one way over an exec for a process that is not root or nothing special.
//
// With a user namespace there are none: they would count against the host's files.
func setCredentials(attr *syscall.SysProcAttr, cfg Config) error {
	u, err := cfg.IDs.User(cfg.User)
	if err != nil {
		return err
	}
	attr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.AdditionalGids}
	if cfg.IDs != nil {
		return nil
	}
	for _, name := range cfg.Capabilities {
		if bit, ok := wasiCapabilities[name]; ok {
			attr.AmbientCaps = append(attr.AmbientCaps, bit)
		}
	}
	return nil
}

// setLimits sets the limits of a process from outside. Those that only the
// process may set, where the caller lacks CAP_SYS_RESOURCE, are left to it.
func setLimits(pid int, cfg Config) error {
	if adj := cfg.OOMScoreAdj; adj != nil {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(*adj)), 0); err != nil {
			return fmt.Errorf("oomScoreAdj %d: %w", *adj, err)
		}
	}
	return setRlimits(pid, cfg.Rlimits)
}

// SetRlimits sets the limits of the calling process: those that its parent may
// not set, and that of open files, which the Go runtime has raised by then.
func SetRlimits(limits []specs.POSIXRlimit) error { return setRlimits(0, limits) }

// setRlimits sets the limits of a process, the calling one when pid is 0. It
// leaves to another process what only that may set.
func setRlimits(pid int, limits []specs.POSIXRlimit) error {
	for _, l := range limits {
		resource, ok := rlimits[l.Type]
		if !ok {
			return fmt.Errorf("rlimit %s: unknown", l.Type)
		}
		err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil)
		if err != nil && (pid == 0 || !errors.Is(err, unix.EPERM)) {
			return fmt.Errorf("rlimit %s: %w", l.Type, err)
		}
	}
	return nil
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// DieWithParent has the kernel kill the calling process when the thread that
// started it ends. Whether that has happened before the call, only a connection
// to the parent tells.
func DieWithParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	return nil
}
