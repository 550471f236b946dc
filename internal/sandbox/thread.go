package sandbox

import (
	"errors"
	"fmt"
	"math"
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
	go func() {
		defer close(t.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		for f := range t.work {
			f()
		}
	}()
	return t
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

// A Spawner starts processes, all from one thread that lives until Close: the
// kernel kills a process that asked for it (PR_SET_PDEATHSIG) when the thread
// that started it ends, not when its process does.
//
// The thread has given up for good what none of the processes may get: they
// inherit no_new_privs, a bounding set of what a guest can use, and that uid 0
// is nothing special.
type Spawner struct {
	thread  *thread
	program string
	stage   *stage
}

// NewSpawner starts the thread. What it will start is the static program of that
// path, under one of the given names: it is how ps(1) lists a process, 15 bytes of
// it.
func NewSpawner(program string, names ...string) (*Spawner, error) {
	stage, err := newStage(program, names)
	if err != nil {
		return nil, err
	}
	s := &Spawner{newThread(), program, stage}
	if err := s.thread.do(confine); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the thread, and with it whatever it started that still runs.
func (s *Spawner) Close() {
	s.thread.close()
	s.stage.close()
}

// start has f, which starts a process, run on the thread. The process gets no
// descriptor but those that f gives it, and a session keyring of its own.
func (s *Spawner) start(f func() error) error {
	return s.thread.do(func() error {
		// The shim was started with some open that close on no exec: its socket.
		if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
			return fmt.Errorf("close on exec: %w", err)
		}
		// A kernel may be without keys.
		if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("session keyring: %w", err)
		}
		return f()
	})
}

func confine() error {
	// To enter mount namespaces the thread needs a root and a working directory
	// of its own.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
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
