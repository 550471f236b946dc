package sandbox

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// A thread is an operating-system thread that runs what it is given, one after
// the other. What a function does to it, the next one finds.
type thread struct {
	work chan func()
	done chan struct{} // closed when the thread has ended
}

func newThread() *thread {
	t := &thread{work: make(chan func()), done: make(chan struct{})}
	go t.run()
	return t
}

func (t *thread) run() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread does not end with a goroutine, and /proc/self is its. While
		// this one waits, another is not given it.
		defer runtime.UnlockOSThread()
		go t.run()
		<-t.done
		return
	}
	defer close(t.done)
	// Never unlocked: the thread ends with this function.
	for f := range t.work {
		f()
	}
}

// do runs f on the thread.
func (t *thread) do(f func() error) error {
	result := make(chan error)
	t.work <- func() { result <- f() }
	return <-result
}

// close ends the thread.
func (t *thread) close() {
	close(t.work)
	<-t.done
}

// A Parent is the thread that started a process: one for each, since what it did
// for that it does not undo. It is in the process's namespaces, has its labels for
// the next exec, and has given up for good what the process may not get.
type Parent struct{ thread *thread }

// Close ends the thread. It is for when the process has exited: the kernel kills a
// process that asked for it (PR_SET_PDEATHSIG) when the thread that started it
// ends, not when its process does.
func (p *Parent) Close() { p.thread.close() }

// confine has whatever the calling thread starts inherit no_new_privs, a bounding
// set of what a guest can use, that uid 0 is nothing special, and a session keyring
// with nothing in it.
func confine() error {
	// To enter mount namespaces the thread needs a root and a working directory
	// of its own.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// A kernel may be without keys.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("session keyring: %w", err)
	}
	for c := uintptr(0); ; c++ {
		if guestCapability(c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL && c > unix.CAP_CHECKPOINT_RESTORE {
			break // the kernel has no more
		}
		if err != nil {
			return fmt.Errorf("bounding set: capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, securebits, 0, 0, 0); err != nil {
		return fmt.Errorf("securebits: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return nil
}
