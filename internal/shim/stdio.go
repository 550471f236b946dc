package shim

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// streams are the standard streams of a process.
//
// The process gets the FIFOs themselves: not a byte is copied here, so there is
// nothing to drain and nothing to lose. What the shim keeps of each FIFO is its
// other end, so that the client may come and go:
//
//	stdin    a writer, until CloseIO: only that is an end of file
//	stdout   a reader, until Delete: without it a client that goes away would
//	stderr   be an EPIPE, and unread output would go with the process
//
// The only writers of stdout and stderr are the process's own. So the client sees
// the end of file when the process is gone and everything has been read.
type streams struct {
	paths stdio.Stdio
	child [3]*os.File // until handOver

	mu          sync.Mutex
	stdinWriter *os.File   // guarded by mu; nil once closed
	readers     []*os.File // guarded by mu
}

// openStreams opens the streams of a request. An empty path is /dev/null, a
// regular file is appended to. Errors unwrap to [errdefs.ErrInvalidArgument].
func openStreams(paths stdio.Stdio) (_ *streams, err error) {
	if paths.Terminal {
		return nil, fmt.Errorf("terminal: not supported: %w", errdefs.ErrInvalidArgument)
	}
	s := &streams{paths: paths}
	defer func() {
		if err != nil {
			s.handOver()
			s.close()
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}()
	if s.child[0], s.stdinWriter, err = openStdin(paths.Stdin); err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	for i, path := range []string{paths.Stdout, paths.Stderr} {
		w, r, err := openOutput(path)
		if err != nil {
			return nil, fmt.Errorf("std%s: %w", [...]string{"out", "err"}[i], err)
		}
		s.child[i+1] = w
		if r != nil {
			s.readers = append(s.readers, r)
		}
	}
	return s, nil
}

func openStdin(path string) (r, w *os.File, err error) {
	if path == "" {
		r, err = os.Open(os.DevNull)
		return r, nil, err
	}
	fifo, err := isFIFO(path)
	if err != nil {
		return nil, nil, err
	}
	// Not blocking: the client's writer may come later.
	if r, err = open(path, unix.O_RDONLY|unix.O_NONBLOCK); err != nil || !fifo {
		return r, nil, err
	}
	if w, err = open(path, unix.O_WRONLY); err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, w, nil
}

func openOutput(path string) (w, r *os.File, err error) {
	if path == "" {
		w, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		return w, nil, err
	}
	fifo, err := isFIFO(path)
	if err != nil {
		return nil, nil, err
	}
	if !fifo {
		w, err = open(path, unix.O_WRONLY|unix.O_APPEND)
		return w, nil, err
	}
	// The reader first: without one, opening to write would wait for the client.
	if r, err = open(path, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
		return nil, nil, err
	}
	if w, err = open(path, unix.O_WRONLY); err != nil {
		r.Close()
		return nil, nil, err
	}
	return w, r, nil
}

func isFIFO(path string) (bool, error) {
	if u, err := url.Parse(path); err == nil && u.Scheme != "" {
		return false, fmt.Errorf("%s: logging by %s is not supported", path, u.Scheme)
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return false, nil
	case mode.Type() == os.ModeNamedPipe:
		return true, nil
	default:
		return false, fmt.Errorf("%s: neither a FIFO nor a regular file", path)
	}
}

// open opens path for a descriptor that blocks, whatever flags say of the
// opening: os.OpenFile would leave a FIFO non-blocking, and the process shares
// the flag.
func open(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// handOver closes the process's own ends, once it has them or never will.
func (s *streams) handOver() {
	for i, f := range s.child {
		if f != nil {
			f.Close()
			s.child[i] = nil
		}
	}
}

// closeStdin ends the standard input: the process reads what is there, then the
// end of file. It may be called again.
func (s *streams) closeStdin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdinWriter == nil {
		return nil
	}
	err := s.stdinWriter.Close()
	s.stdinWriter = nil
	return err
}

// close lets go of the FIFOs.
func (s *streams) close() error {
	errs := []error{s.closeStdin()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.readers {
		errs = append(errs, r.Close())
	}
	s.readers = nil
	return errors.Join(errs...)
}
