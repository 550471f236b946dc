package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"time"

	runcshim "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"golang.org/x/sys/unix"
)

// A logger is a program that takes the output of a process, by pipes: the client
// names it with a binary:// URI. It finds stdout at its descriptor 3, stderr at 4,
// and at 5 where to say that it is ready. It ends when its pipes have.
//
// See https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md#logging.
type logger struct {
	cmd    *exec.Cmd
	done   chan struct{} // closed once it has ended, and been reaped
	status int           // valid once done is closed
}

const (
	// loggerTime is how long a logger may take to be ready, and again to end when
	// its pipes have.
	loggerTime = 10 * time.Second
	// loggerGrace is how long it may take to heed SIGTERM.
	loggerGrace = 2 * time.Second
)

// loggerURI is nil for an output that is none.
func loggerURI(path string) *url.URL {
	uri := parseURI(path)
	if uri == nil || uri.Scheme != "binary" && uri.Scheme != "binary-v2" {
		return nil
	}
	return uri
}

// startLogger starts the logger of the process id and waits until it is ready. The
// files are the ends to write to. They block: a process is to have them.
func startLogger(ctx context.Context, id string, uri *url.URL, own owner) (_ *logger, stdout, stderr *os.File, err error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	var theirs, ours []*os.File
	defer func() {
		runcshim.CloseFiles(theirs...)
		if err != nil {
			runcshim.CloseFiles(ours...)
		}
	}()
	for range 2 {
		r, w, err := newPipe(own)
		if err != nil {
			return nil, nil, nil, err
		}
		theirs, ours = append(theirs, r), append(ours, w)
	}
	ready, w, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer ready.Close()
	theirs = append(theirs, w)
	l := &logger{cmd: runcshim.NewBinaryCmd(uri, id, namespace), done: make(chan struct{})}
	l.cmd.ExtraFiles = theirs
	exits, err := reaper.Default.Start(l.cmd)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("logger %s: %w", uri.Path, err)
	}
	go func() { // ends with the program: see stop
		defer close(l.done)
		l.status, _ = reaper.Default.Wait(l.cmd, exits)
	}()
	runcshim.CloseFiles(theirs...)
	theirs = nil
	if err := l.ready(ctx, ready, ours[0], uri.Scheme); err != nil {
		runcshim.CloseFiles(ours...)
		if e := l.stop(); e != nil {
			return nil, nil, nil, errors.Join(err, e)
		}
		return nil, nil, nil, fmt.Errorf("logger %s: %w: exit status %d", uri.Path, err, l.status)
	}
	return l, ours[0], ours[1], nil
}

// newPipe is a pipe that blocks, which os.Pipe would not be.
func newPipe(own owner) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	if err := w.Chown(own.uid, own.gid); err != nil { // both ends are one
		runcshim.CloseFiles(r, w)
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	return r, w, nil
}

// ready waits until the logger says at the pipe r that it is ready. Out is the
// pipe of its stdout.
func (l *logger) ready(ctx context.Context, r, out *os.File, scheme string) error {
	_ = r.SetReadDeadline(time.Now().Add(loggerTime)) // a pipe has deadlines
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })()
	_, err := r.Read(make([]byte, 1))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		// With binary:// the end of the file will do, for loggers of old; but death
		// is one, too. The dead read no output either.
		if scheme == "binary" && hasReader(out) {
			return nil
		}
		return errors.New("it ended before it was ready")
	}
	_ = l.cmd.Process.Kill() // gone already, or will be
	if ctx.Err() != nil {
		return fmt.Errorf("it was not ready yet: %w", context.Cause(ctx))
	}
	return fmt.Errorf("it was not ready within %v", loggerTime)
}

// hasReader tells whether somebody has the other end of the pipe w. The ends of a
// process that dies are closed one after the other: hence the wait.
func hasReader(w *os.File) bool {
	const wait = 10 // ms
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.Fd())}}, wait) // of itself it looks for POLLERR
		if !errors.Is(err, unix.EINTR) {
			return n == 0
		}
	}
}

// stop waits for the end of a logger whose pipes have come to theirs. One that is
// late is told to end, then killed. It may be called again.
func (l *logger) stop() error {
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{0, loggerTime}, {unix.SIGTERM, loggerGrace}, {unix.SIGKILL, loggerGrace}} {
		if step.signal != 0 {
			_ = l.cmd.Process.Signal(step.signal) // gone already, or will be
		}
		select {
		case <-l.done:
			return nil
		case <-time.After(step.wait):
		}
	}
	return fmt.Errorf("logger %s: pid %d cannot be killed", l.cmd.Path, l.cmd.Process.Pid)
}
