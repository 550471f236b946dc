package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

// Labels are what the kernel's security modules know a process and its files by.
// An empty one is none.
type Labels struct {
	AppArmor string // a profile that is loaded; "unconfined" is none as well
	SELinux  string // the context of the process
	Mount    string // SELinux's, of every file of the file systems that are made
}

const unconfined = "unconfined"

func (l Labels) profile() string {
	if l.AppArmor == unconfined {
		return ""
	}
	return l.AppArmor
}

// checkSELinux looks whether the kernel knows the contexts.
func (l Labels) checkSELinux() error {
	for _, label := range []string{l.SELinux, l.Mount} {
		if label == "" {
			continue
		}
		if !selinux.GetEnabled() {
			return fmt.Errorf("SELinux label %s: SELinux is not enabled on this host", label)
		}
		if err := selinux.SecurityCheckContext(label); err != nil {
			return fmt.Errorf("SELinux label %s: %w", label, err)
		}
	}
	return nil
}

// onExec has the processes that the calling thread starts get the labels, as they
// execute their program: none of their threads ever runs it without.
func (l Labels) onExec() error {
	if name := l.profile(); name != "" {
		if err := changeProfileOnExec(name); err != nil {
			return fmt.Errorf("AppArmor profile %s: %w", name, err)
		}
	}
	if l.SELinux != "" {
		if err := selinux.SetExecLabel(l.SELinux); err != nil {
			return fmt.Errorf("SELinux label %s: %w", l.SELinux, err)
		}
	}
	return nil
}

// changeProfileOnExec is aa_change_onexec(3).
func changeProfileOnExec(name string) error {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || len(enabled) == 0 || enabled[0] != 'Y' {
		return errors.New("AppArmor is not enabled on this host")
	}
	// The second name is the only one before Linux 5.8, and any module's.
	f, err := os.OpenFile("/proc/thread-self/attr/apparmor/exec", os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile("/proc/thread-self/attr/exec", os.O_WRONLY, 0)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("exec " + name)
	if errors.Is(err, unix.ENOENT) {
		return errors.New("not loaded")
	}
	return err
}

// executingTime bounds the wait for a process to be what it was started to be.
const executingTime = 10 * time.Second

// verify looks whether the process pid, which is about to execute its program or
// has, got its AppArmor profile. One that is removed between a thread's choice and
// that leaves the process with none.
func (l Labels) verify(pid int) error {
	if l.profile() == "" {
		return nil
	}
	for deadline := time.Now().Add(executingTime); ; time.Sleep(time.Millisecond) {
		executed, err := hasExecuted(pid)
		if err != nil {
			return fmt.Errorf("AppArmor profile %s: %w", l.AppArmor, err)
		}
		current, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/apparmor/current", pid))
		if errors.Is(err, os.ErrNotExist) {
			current, err = os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", pid))
		}
		if err == nil && strings.TrimSpace(string(current)) != unconfined {
			return nil
		}
		if err == nil && (executed || time.Now().After(deadline)) {
			err = errors.New("is no longer loaded")
		}
		if err != nil {
			return fmt.Errorf("AppArmor profile %s: %w", l.AppArmor, err)
		}
	}
}

// hasExecuted tells whether a process that this one has forked executes a program
// by now. Who started it knows only that an exec is under way: the kernel closes
// descriptors before it changes labels, and both before there are arguments.
func hasExecuted(pid int) (bool, error) {
	own, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		return false, err
	}
	its, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return len(its) > 0 && !bytes.Equal(own, its), err
}

// mountOptions are those of a new file system.
func (l Labels) mountOptions() []string {
	if l.Mount == "" {
		return nil
	}
	return []string{"context=" + l.Mount}
}
