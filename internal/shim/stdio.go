package shim

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// streams are the standard streams of a process.
//
//	openStreams  opens what the request names, starts its logger, makes its terminal
//	handOver     the process has its ends; a terminal is copied from now on
//	drain        the process is gone: its output is on its way to the client
//	close        everything is let go of, a logger has ended
//
// The process gets the FIFOs, files and pipes themselves, so that there is nothing
// to copy and nothing to lose; only a terminal is copied, see [terminal]. What the
// shim keeps of each FIFO is its other end, so that the client may come and go:
//
//	stdin    a writer, until CloseIO: only that is an end of file
//	stdout   a reader, until Delete: without it a client that goes away would
//	stderr   be an EPIPE, and unread output would go with the process
//
// The only writers of stdout and stderr are the process's own, or the terminal's
// copy. So the client sees the end of file when the process is gone and everything
// has been read.
type streams struct {
	paths    stdio.Stdio
	child    [3]*os.File // until handOver
	terminal *terminal   // nil without
	logger   *logger     // nil without

	// onSignal is told of a signal that was typed on the terminal; may be nil. Set
	// before handOver. It must not wait for the streams.
	onSignal func(unix.Signal)

	mu          sync.Mutex
	stdinWriter *os.File   // guarded by mu; nil once closed
	readers     []*os.File // guarded by mu
}

// owner is who owns the pipes and terminals that the shim makes: io_uid and io_gid
// of the options.
type owner struct{ uid, gid int }

// openStreams opens the streams of the container's process id. An empty path is
// /dev/null. A plain path, or fifo://, is a FIFO or a regular file, that exists;
// file:// is made and appended to; binary:// is a program that gets the output,
// and as stdout stands for both streams. With a terminal there is no stderr.
//
// Ctx bounds the start of a logger. Errors unwrap to [errdefs.ErrInvalidArgument].
func openStreams(ctx context.Context, id string, paths stdio.Stdio, own owner) (_ *streams, err error) {
	s := &streams{paths: paths}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %w", errors.Join(err, s.close()), errdefs.ErrInvalidArgument)
		}
	}()
	if s.child[0], s.stdinWriter, err = openStdin(paths.Stdin); err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	if uri := loggerURI(paths.Stdout); uri != nil {
		err = telemetry.Stage(ctx, telemetry.LoggerStart, func(ctx context.Context) (err error) {
			trace.SpanFromContext(ctx).SetAttributes(telemetry.ProcessExecutablePath.String(telemetry.Text(uri.Path)))
			s.logger, s.child[1], s.child[2], err = startLogger(ctx, id, uri, own)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("stdout: %w", err)
		}
	} else if err := s.openOutputs(); err != nil {
		return nil, err
	}
	if paths.Terminal {
		if err := s.openTerminal(ctx, own); err != nil {
			return nil, fmt.Errorf("terminal: %w", err)
		}
	}
	return s, nil
}

func openStdin(path string) (r, w *os.File, err error) {
	if path == "" {
		r, err = os.Open(os.DevNull)
		return r, nil, err
	}
	if path, err = existing(path); err != nil {
		return nil, nil, err
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

func (s *streams) openOutputs() error {
	names, paths := []string{"stdout", "stderr"}, []string{s.paths.Stdout, s.paths.Stderr}
	if s.paths.Terminal {
		paths = paths[:1]
	}
	for i, path := range paths {
		w, r, err := openOutput(path)
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		s.child[i+1] = w
		if r != nil {
			s.readers = append(s.readers, r)
		}
	}
	return nil
}

func openOutput(path string) (w, r *os.File, err error) {
	if path == "" {
		w, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		return w, nil, err
	}
	if uri := parseURI(path); uri != nil && uri.Scheme == "file" {
		w, err = openLog(uri.Path)
		return w, nil, err
	}
	if path, err = existing(path); err != nil {
		return nil, nil, err
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

// openLog opens the file of a file:// URI, with the modes that containerd's own
// shim gives it.
func openLog(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("file://%s: not an absolute path", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// Not blocking: should it be a FIFO that nobody reads.
	return open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_NONBLOCK)
}

// parseURI is nil for a plain path.
func parseURI(path string) *url.URL {
	uri, err := url.Parse(path)
	if err != nil || uri.Scheme == "" {
		return nil
	}
	return uri
}

// existing is the path of a FIFO or file that the client has made.
func existing(path string) (string, error) {
	switch uri := parseURI(path); {
	case uri == nil:
		return path, nil
	case uri.Scheme == "fifo":
		return uri.Path, nil
	default:
		return "", fmt.Errorf("%s: %s:// is not supported here", path, uri.Scheme)
	}
}

func isFIFO(path string) (bool, error) {
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
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0o644)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openTerminal puts a terminal between the process and what has been opened.
func (s *streams) openTerminal(ctx context.Context, own owner) (err error) {
	in, out := s.child[0], s.child[1]
	if s.child[2] != nil {
		s.child[2].Close() // the logger's
	}
	if s.paths.Stdin == "" {
		// Nobody can type, and nobody can end it: a read waits, as it does for
		// containerd's own shim.
		in.Close()
		in = nil
	}
	s.child = [3]*os.File{}
	var slave *os.File
	if s.terminal, slave, err = newTerminal(in, out, own); err != nil {
		return err
	}
	s.terminal.log = log.G(ctx)
	s.child = [3]*os.File{slave, slave, slave}
	return nil
}

// handOver closes the process's own ends, once it has them or never will, and has
// its terminal copied.
func (s *streams) handOver() {
	for i, f := range s.child {
		if f != nil {
			f.Close() // once more for a terminal, which is no harm
			s.child[i] = nil
		}
	}
	if s.terminal != nil {
		s.terminal.copy(s.onSignal)
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

// resize sets the size of the terminal, in characters. Without one it fails with
// [errdefs.ErrFailedPrecondition].
func (s *streams) resize(width, height uint32) error {
	if s.terminal == nil {
		return fmt.Errorf("resize: the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	if err := s.terminal.resize(width, height); err != nil {
		return fmt.Errorf("resize to %d×%d: %w", width, height, err)
	}
	return nil
}

const (
	// drainTime is how long an exit is held back for a client that reads slowly.
	drainTime = 10 * time.Second
	// stallTime is how long for one that does not read at all.
	stallTime = time.Second
)

// backlog is what of the output has not reached the client.
type backlog struct {
	copying bool  // the terminal has more
	copied  int64 // from the terminal, in bytes
	unread  int   // in FIFOs, in bytes
}

// drain waits, once the process is gone, until the client has read everything: it
// closes its ends when it hears of the exit. It waits for a client that is
// reading up to timeout, for one that is not up to [stallTime]. Nothing is thrown
// away then, it stays to be read until close.
func (s *streams) drain(timeout time.Duration) {
	last, began := s.backlog(), time.Now()
	moved := began
	for pause := 100 * time.Microsecond; last.copying || last.unread > 0; pause = min(2*pause, 10*time.Millisecond) {
		time.Sleep(pause)
		now := s.backlog()
		if now != last {
			last, moved = now, time.Now()
		}
		if time.Since(began) > timeout || time.Since(moved) > stallTime {
			return
		}
	}
}

func (s *streams) backlog() (b backlog) {
	if s.terminal != nil {
		b.copying, b.copied = s.terminal.progress()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.readers {
		// It fails for none of them; if it did, there would be nothing to wait for.
		if n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ); err == nil {
			b.unread += n
		}
	}
	return b
}

// close lets go of everything, when the process is gone. A logger gets its time to
// write what it has; of a terminal's output what has not got into the FIFO by now
// is lost. It may be called again.
func (s *streams) close() error {
	s.handOver()
	errs := []error{s.closeStdin()}
	if s.logger != nil {
		errs = append(errs, s.logger.stop())
	}
	if s.terminal != nil {
		s.terminal.close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.readers {
		errs = append(errs, r.Close())
	}
	s.readers = nil
	return errors.Join(errs...)
}
