package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// A child is one re-execution of this binary: an instance process or a compile
// process.
type child struct {
	role    string
	pid     int
	pidfd   *os.File // stays this process's, also when the pid has been used again
	control *instance.Conn
	parent  *sandbox.Parent  // ended by wait
	relay   *telemetry.Relay // nil when not traced
	memory  *instance.MemoryLimit
	size    *instance.MemorySize // nil when not traced, and of a compile process
	// onListener is given the listener of the process's seccomp profile, if that has
	// one; else nil.
	onListener func(*os.File) error

	exited chan struct{} // closed once the process is gone
	status int           // valid once exited is closed; of the process, see reported
	at     time.Time     // valid once exited is closed

	mu     sync.Mutex
	signal unix.Signal       // guarded by mu; asked for with kill
	kills  []telemetry.Event // guarded by mu; the first maxKills
}

// programName is what a process of the given role is listed as by ps(1).
func programName(role string) string { return "wazero-" + role }

// startChild re-executes this binary in the given role, inside the given walls
// and cgroup. The process is told cfg, with Observe only when ctx has a span, and has
// nothing of the shim's environment but, when ctx has a span, that.
//
// The caller closes the streams it gave, and must call release when the process
// has exited.
func startChild(ctx context.Context, role string, cfg instance.Config, memoryLimit uint64, w *sandbox.Walls, place sandbox.Birthplace, streams [3]*os.File) (_ *child, err error) {
	tc := telemetry.Inject(ctx)
	cfg.Observe = cfg.Observe && tc != ""
	config, memory, err := instance.NewConfig(cfg, memoryLimit)
	if err != nil {
		return nil, err
	}
	defer config.Close()
	defer func() {
		if err != nil {
			memory.Close()
		}
	}()
	control, theirs, err := instance.NewConn()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p := &child{role: role, control: control, memory: memory, exited: make(chan struct{})}
	defer func() {
		if err != nil && p.pid == 0 { // else destroy has done so
			control.Close()
			p.size.Close()
		}
	}()

	cmd := &exec.Cmd{
		Path:       w.Program(),
		Args:       []string{runtimeBinary, role},
		Env:        []string{}, // not nil, which would be the shim's
		ExtraFiles: []*os.File{theirs, config},
	}
	// Package exec would open it where the process is born, and there is none.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	for i, f := range streams {
		if f == nil {
			streams[i] = null
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams[0], streams[1], streams[2]
	if tc != "" {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		p.relay = telemetry.NewRelay(ctx, r)
		cmd.Env = append(cmd.Env, telemetry.TraceContextEnv+"="+tc)
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	if p.relay != nil && role == instance.RoleInstance {
		theirs, size, err := instance.NewMemorySize()
		if err != nil {
			return nil, err
		}
		defer theirs.Close()
		p.size = size
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	}
	if cfg.Observe {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		p.relay.Guest(r)
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	pidfd := -1
	// A group of its own: what it sends to group 0 reaches nobody else. A session of
	// its own would let it take a terminal and type there.
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd, Setpgid: true}
	var exits chan runc.Exit
	p.parent, err = w.Start(place, cmd.SysProcAttr, func() (err error) {
		exits, err = reaper.Default.Start(cmd)
		return err
	})
	if err != nil {
		err = fmt.Errorf("start %s process: %w", role, err)
	}
	if cmd.Process == nil {
		return nil, err
	}
	p.pid, p.pidfd = cmd.Process.Pid, os.NewFile(uintptr(pidfd), "pidfd")
	go p.wait(cmd, exits)
	if err != nil {
		p.destroy()
		return nil, err
	}
	return p, nil
}

// wait is the only place that waits for the process. It ends with it.
func (p *child) wait(cmd *exec.Cmd, exits chan runc.Exit) {
	for e := range exits {
		if e.Pid == p.pid {
			p.status, p.at = e.Status, e.Timestamp
			break
		}
	}
	reaper.Default.Unsubscribe(exits)
	_ = cmd.Wait() // has nothing to say: the reaper was first; frees what cmd holds
	// For ask: a process that was broken into may have left its end to another one.
	_ = p.control.HangUp() // fails if that has not been done
	if p.parent != nil {
		p.parent.Close()
	}
	close(p.exited)
}

// ask tells the process what to do next, and waits until it is ready. A process
// that has ended instead is an error that says so.
func (p *child) ask(m instance.Message, files ...*os.File) error {
	err := p.control.Send(m, files...)
	var answer instance.Message
	if err == nil {
		answer, _, err = p.control.Receive(0)
	}
	if err == nil && answer.Listener != nil {
		if err = p.handListener(*answer.Listener); err == nil {
			answer, _, err = p.control.Receive(0)
		}
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		_ = p.kill(unix.SIGKILL) // it has closed its end at least
		<-p.exited
		return fmt.Errorf("the %s process ended with status %d before it was ready", p.role, p.status)
	case err == nil && !answer.Ready:
		return fmt.Errorf("the %s process is not ready", p.role)
	}
	return err
}

// handListener fetches a descriptor of the process, and hands it on.
func (p *child) handListener(number int) error {
	if p.onListener == nil {
		return fmt.Errorf("the %s process has a listener that nobody asked for", p.role)
	}
	fd, err := unix.PidfdGetfd(int(p.pidfd.Fd()), number, 0)
	if err != nil {
		return fmt.Errorf("seccomp listener: %w", err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	return p.onListener(f)
}

// release frees what the shim holds of a process that has exited.
func (p *child) release() {
	<-p.exited
	p.mu.Lock() // a kill may be looking at it
	defer p.mu.Unlock()
	p.control.Close()
	p.pidfd.Close()
	p.memory.Close()
	p.size.Close()
}

// kill ends the process for the given signal, or delivers it when it is not one
// that ends a process by default.
//
// A guest can handle no signal, and the process must end even while compiled
// code spins and none of its goroutines can run. So the kernel gets SIGKILL, and
// the client the status it expects of its signal: see reported.
//
// # Errors
//
//   - [errdefs.ErrInvalidArgument]: no such signal
//   - [errdefs.ErrNotFound]: the process is gone
func (p *child) kill(sig unix.Signal) error {
	if sig < 0 || sig > lastSignal {
		return fmt.Errorf("signal %d: %w", int(sig), errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited:
		return fmt.Errorf("process %d has exited: %w", p.pid, errdefs.ErrNotFound)
	default:
	}
	deliver := sig
	if terminates(sig) {
		deliver = unix.SIGKILL
	}
	at := time.Now() // before the end that it may be
	err := unix.PidfdSendSignal(int(p.pidfd.Fd()), deliver, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d has exited: %w", p.pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("signal %d to process %d: %w", int(sig), p.pid, err)
	}
	if deliver == unix.SIGKILL && p.signal == 0 {
		p.signal = sig
	}
	if p.relay != nil && sig != 0 && len(p.kills) < maxKills {
		p.kills = append(p.kills, telemetry.NewEvent(telemetry.EventKill, at, telemetry.KillSignal.Int(int(sig))))
	}
	return nil
}

// destroy kills the process and waits for its end.
func (p *child) destroy() {
	_ = p.kill(unix.SIGKILL) // gone already, or will be
	p.release()
	p.relay.Finish(p.at, p.status, nil)
}

// reported is the status containerd is told. Valid once exited is closed.
func (p *child) reported() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.signal != 0 && p.status == 128+int(unix.SIGKILL) {
		return 128 + int(p.signal)
	}
	return p.status
}

// maxKills is of how many signals the span of a run tells.
const maxKills = 16

// lastSignal is the kernel's SIGRTMAX.
const lastSignal unix.Signal = 64

// terminates tells whether a signal ends a process that does not handle it:
// signal(7).
func terminates(sig unix.Signal) bool {
	switch sig {
	case 0, unix.SIGCHLD, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGWINCH:
		return false
	}
	return true
}

// memfd is a file in memory with v as JSON.
func memfd(name string, v any) (*os.File, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return f, nil
}
