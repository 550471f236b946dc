package shim

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// logPatience is how long a line may wait for room in the pipe of the log.
const logPatience = 100 * time.Millisecond

// A logPipe writes the log of the shim to a pipe, and does not depend on who reads
// it. That is containerd, which may be stopped, gone or waiting for a disk itself;
// and a line that waits would have every call wait that has something to log.
//
// A line that there is no room for is lost, as is one that nobody is there for. The
// first that gets through again follows one that says how many there were.
type logPipe struct {
	fd       int
	patience time.Duration

	mu   sync.Mutex
	lost int  // guarded by mu; lines since the last that was written
	torn bool // guarded by mu; the last is there in part
}

// setLog has the shim log to the FIFO of that name in its bundle, which containerd
// reads. It is its standard error as well: so what the Go runtime says is there too.
func setLog(debug bool) error {
	f, err := os.OpenFile("log", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer f.Close()
	fd := int(os.Stderr.Fd())
	if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
		return fmt.Errorf("log: %w", os.NewSyscallError("dup3", err))
	}
	l, err := newLogPipe(fd)
	if err != nil {
		return err
	}
	log.L.Logger.SetOutput(l)
	if debug {
		if err := log.SetLevel(log.DebugLevel); err != nil {
			return err
		}
	}
	return log.SetFormat(log.TextFormat)
}

// newLogPipe makes the pipe, which it does not own, one whose writes never wait,
// whoever makes them.
func newLogPipe(fd int) (*logPipe, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return &logPipe{fd: fd, patience: logPatience}, nil
}

// Write implements [io.Writer] for one line. It has no errors: the logger could
// only try to log them.
func (l *logPipe) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	data := line
	until := time.Now().Add(l.patience)
	if l.lost > 0 {
		until = time.Time{} // all patience is spent
		data = fmt.Appendf(nil, "%s: %d lines of the log were lost: nobody read them\n%s", RuntimeName, l.lost, line)
	}
	if l.torn {
		data = append([]byte("\n"), data...)
	}
	for written := 0; written < len(data); {
		n, err := unix.Write(l.fd, data[written:])
		switch {
		case err == nil:
			written += n
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && l.room(until):
		default:
			l.lost++
			l.torn = l.torn || written > 0
			return len(line), nil
		}
	}
	l.lost, l.torn = 0, false
	return len(line), nil
}

// room waits until the pipe has room, and tells whether it had in time.
func (l *logPipe) room(until time.Time) bool {
	wait := time.Until(until).Milliseconds()
	if wait <= 0 {
		return false
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLOUT}}, int(wait))
	return n > 0 || errors.Is(err, unix.EINTR)
}
