package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// A terminal is a pseudo terminal between a process, which has the slave, and the
// client, to whose FIFOs the master is copied.
//
// It is nobody's controlling terminal: a signal of the kernel's would not end the
// first process of a PID namespace, or with a status of its own. So the copy looks
// for the characters that mean one, see "Why is a typed Ctrl-C not the kernel's?"
// in RATIONALE.md.
type terminal struct {
	master  *os.File
	in      *os.File // nil: no standard input
	out     *os.File
	start   sync.Once
	copies  sync.WaitGroup
	copied  atomic.Int64  // bytes of output
	drained chan struct{} // closed once the output has been copied, to its end
	log     *log.Entry
}

// newTerminal takes over in, which may be nil, and out.
func newTerminal(in, out *os.File, own owner) (_ *terminal, slave *os.File, err error) {
	t := &terminal{drained: make(chan struct{}), log: log.L}
	defer func() {
		if err != nil {
			t.start.Do(func() {})
			t.close()
			if slave != nil {
				slave.Close()
			}
		}
	}()
	if in != nil {
		if t.in, err = pollable(in); err != nil {
			out.Close()
			return nil, nil, err
		}
	}
	if t.out, err = pollable(out); err != nil {
		return nil, nil, err
	}
	if t.master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	err = t.control(func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return fmt.Errorf("unlock: %w", err)
		}
		// By descriptor, wherever the host has its devpts.
		peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			return fmt.Errorf("open slave: %w", errno)
		}
		slave = os.NewFile(peer, "terminal")
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return t, slave, slave.Chown(own.uid, own.gid)
}

// pollable trades f for a descriptor of the same file that does not block: only
// what is read and written through the runtime's poller ends with a Close.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// control has do work on the master's descriptor. Fd would make it one that blocks.
func (t *terminal) control(do func(fd int) error) error {
	conn, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	if e := conn.Control(func(fd uintptr) { err = do(int(fd)) }); e != nil {
		return e
	}
	return err
}

// copy starts the copying, the first time it is called.
func (t *terminal) copy(onSignal func(unix.Signal)) {
	t.start.Do(func() {
		t.copies.Go(t.copyOutput)
		if t.in != nil {
			t.copies.Go(func() { t.copyInput(onSignal) })
		}
	})
}

// copyOutput ends with the process: reading the master fails with EIO when nobody
// has the slave any more and all that was written has been read.
func (t *terminal) copyOutput() {
	defer close(t.drained)
	defer t.out.Close() // the client's end of file
	var lost bool
	for buf := make([]byte, 32<<10); ; {
		n, err := t.master.Read(buf)
		if err != nil {
			return
		}
		// Whatever becomes of it: a process must not hang for a log that is full.
		if _, err := t.out.Write(buf[:n]); err != nil && !lost && !errors.Is(err, os.ErrClosed) {
			lost = true
			t.log.WithError(err).Error("output of a terminal is lost")
		}
		t.copied.Add(int64(n))
	}
}

// copyInput ends with the client's input, after CloseIO, or with close.
func (t *terminal) copyInput(onSignal func(unix.Signal)) {
	defer t.in.Close()
	last := byte('\n')
	for buf := make([]byte, 4096); ; {
		n, err := t.in.Read(buf)
		if typed := buf[:n]; len(typed) > 0 {
			if _, err := t.master.Write(typed); err != nil {
				return
			}
			// After that: it would be gone before its echo.
			t.signal(typed, onSignal)
			last = typed[len(typed)-1]
		}
		if errors.Is(err, io.EOF) {
			t.endInput(last)
		}
		if err != nil {
			return
		}
	}
}

// signal tells of the signals among the characters that were typed.
func (t *terminal) signal(typed []byte, onSignal func(unix.Signal)) {
	mode, err := t.mode()
	if err != nil || onSignal == nil || mode.Lflag&unix.ISIG == 0 {
		return
	}
	for _, c := range []struct {
		char byte
		sig  unix.Signal
	}{{mode.Cc[unix.VINTR], unix.SIGINT}, {mode.Cc[unix.VQUIT], unix.SIGQUIT}} {
		if c.char != 0 && bytes.IndexByte(typed, c.char) >= 0 { // 0: there is none
			onSignal(c.sig)
		}
	}
}

// endInput types the end of file: a terminal has no other. In the middle of a line
// the first one only ends that.
func (t *terminal) endInput(last byte) {
	mode, err := t.mode()
	if err != nil || mode.Lflag&unix.ICANON == 0 {
		return
	}
	eof := mode.Cc[unix.VEOF]
	end := []byte{eof}
	if last != '\n' && last != '\r' && last != eof {
		end = append(end, eof)
	}
	_, _ = t.master.Write(end) // fails if the process is gone, or about to be
}

func (t *terminal) mode() (mode *unix.Termios, err error) {
	err = t.control(func(fd int) (err error) {
		mode, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	return mode, err
}

func (t *terminal) resize(width, height uint32) error {
	if width > math.MaxUint16 || height > math.MaxUint16 {
		return fmt.Errorf("too large: %w", errdefs.ErrInvalidArgument)
	}
	return t.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)})
	})
}

// progress is whether output is still being copied, and how many bytes have been.
func (t *terminal) progress() (copying bool, copied int64) {
	select {
	case <-t.drained:
		return false, t.copied.Load()
	default:
		return true, t.copied.Load()
	}
}

// close ends the copying, where it has got to. It may be called again.
func (t *terminal) close() {
	for _, f := range []*os.File{t.master, t.in, t.out} {
		if f != nil {
			f.Close()
		}
	}
	t.copies.Wait()
}
