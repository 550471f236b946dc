package shim

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/shim/gone"
)

// service is the task service, version 3: each call looks its container up and
// leaves the work to it. Errors unwrap to errdefs'; they are put on the wire in
// one place, see [plugin].
//
// See https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md.
type service struct {
	host     *host
	shutdown func()

	mu sync.Mutex
	// guarded by mu; nil while a Create is in flight
	containers map[string]*container
	// guarded by mu; there has been a container
	used bool
	// guarded by mu; Shutdown was called while a Create was in flight, given up by
	// its client and not ended yet
	wanted bool
}

var empty = &ptypes.Empty{}

// orphanTime is how often a shim without a container looks whether anybody knows
// of it.
const orphanTime = 5 * time.Second

// watch ends a shim that never got a container and never will: containerd has
// given up on its `start` (a client's request was cancelled), and removed the
// bundle, but knows of no shim to shut down. It returns when ctx is done, or the
// shim has got its container.
func (s *service) watch(ctx context.Context) {
	tick := time.NewTicker(orphanTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		used, busy := s.used, len(s.containers) > 0
		s.mu.Unlock()
		if used {
			return
		}
		// The working directory is the bundle. One that was removed has no links.
		var st unix.Stat_t
		if err := unix.Stat(".", &st); err == nil && st.Nlink == 0 && !busy {
			log.G(ctx).Warn("the bundle is gone, and there is no container: shutting down")
			s.shutdown()
			return
		}
	}
}

// get finds the container of a call that names no exec.
func (s *service) get(id, execID string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	if execID != "" {
		return nil, fmt.Errorf("container %q: exec %q: %w", id, execID, errdefs.ErrNotFound)
	}
	return c, nil
}

// unsupported is the answer to a call that is not there: the container must be.
func (s *service) unsupported(id, call string) (*ptypes.Empty, error) {
	if _, err := s.get(id, ""); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s of a wasm container: %w", call, errdefs.ErrNotImplemented)
}

// Create makes the container and its parked process.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	if err := checkOptions(r); err != nil {
		return nil, err
	}
	s.mu.Lock()
	_, taken := s.containers[r.ID]
	if !taken {
		s.containers[r.ID] = nil
	}
	s.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("container %q: %w", r.ID, errdefs.ErrAlreadyExists)
	}
	c, err := newContainer(ctx, s.host, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.containers, r.ID)
		if s.wanted && len(s.containers) == 0 {
			s.shutdown()
		}
		return nil, err
	}
	s.containers[r.ID], s.wanted, s.used = c, false, true
	s.host.outbox.send(&eventstypes.TaskCreate{
		ContainerID: r.ID,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO:          &eventstypes.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Pid:         uint32(c.init.pid),
	})
	go c.supervise() // ends with the process, which ends with the shim
	return &taskapi.CreateTaskResponse{Pid: uint32(c.init.pid)}, nil
}

// checkOptions refuses options of a type that nobody here can read. What those
// that can be read say is for runc: nothing in them is about a wasm container.
func checkOptions(r *taskapi.CreateTaskRequest) error {
	if r.Options == nil || len(r.Options.Value) == 0 && r.Options.TypeUrl == "" {
		return nil
	}
	v, err := typeurl.UnmarshalAny(r.Options)
	if err == nil {
		switch v.(type) {
		case *options.Options, *runtimeoptions.Options:
			return nil
		}
	}
	return fmt.Errorf("options of type %q: %w", r.Options.TypeUrl, errdefs.ErrInvalidArgument)
}

// Start lets the guest run.
func (s *service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	pid, err := c.start(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

// Wait answers when the process has exited and the client goes away not.
func (s *service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	c, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	e, err := c.wait(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.WaitResponse{ExitStatus: uint32(e.Status), ExitedAt: protobuf.ToTimestamp(e.At)}, nil
}

// Kill ends the guest for a signal. A guest is one process, so All is no more.
func (s *service) Kill(_ context.Context, r *taskapi.KillRequest) (*ptypes.Empty, error) {
	c, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.Signal > uint32(lastSignal) {
		return nil, fmt.Errorf("signal %d: %w", r.Signal, errdefs.ErrInvalidArgument)
	}
	return empty, c.kill(unix.Signal(r.Signal))
}

// Delete removes a container whose process has exited or never ran.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	e, err := c.remove(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	delete(s.containers, r.ID)
	s.mu.Unlock()
	resp := &taskapi.DeleteResponse{Pid: uint32(e.Pid), ExitStatus: uint32(e.Status), ExitedAt: protobuf.ToTimestamp(e.At)}
	s.host.outbox.send(&eventstypes.TaskDelete{ContainerID: r.ID, Pid: resp.Pid, ExitStatus: resp.ExitStatus, ExitedAt: resp.ExitedAt})
	if answer, err := proto.Marshal(resp); err == nil {
		err = gone.Record(c.bundle.path, answer)
		if err != nil {
			log.G(ctx).WithError(err).Debug("record deletion") // `delete` will look for itself
		}
	}
	return resp, nil
}

// State answers at once, whatever the container is doing.
func (s *service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p, e := c.state()
	resp := &taskapi.StateResponse{
		ID: r.ID, Bundle: c.bundle.path, Pid: uint32(c.init.pid), Status: p.status(),
		Stdin: c.streams.paths.Stdin, Stdout: c.streams.paths.Stdout, Stderr: c.streams.paths.Stderr,
		Terminal: c.streams.paths.Terminal,
	}
	if !e.At.IsZero() {
		resp.ExitStatus, resp.ExitedAt = uint32(e.Status), protobuf.ToTimestamp(e.At)
	}
	return resp, nil
}

// Pids lists the processes of a container.
func (s *service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.get(r.ID, "")
	if err != nil {
		return nil, err
	}
	resp := &taskapi.PidsResponse{}
	if _, e := c.state(); e.At.IsZero() {
		resp.Processes = append(resp.Processes, &task.ProcessInfo{Pid: uint32(c.init.pid)})
	}
	return resp, nil
}

// Connect answers for any id: containerd asks it of a shim it finds after its
// own restart.
func (s *service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	resp := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.get(r.ID, ""); err == nil {
		resp.TaskPid = uint32(c.init.pid)
	}
	return resp, nil
}

// CloseIO ends the standard input.
func (s *service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*ptypes.Empty, error) {
	c, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if !r.Stdin {
		return empty, nil
	}
	return empty, c.streams.closeStdin()
}

// Shutdown ends the shim after its last container. It may be called again.
func (s *service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*ptypes.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) == 0 {
		s.shutdown()
	}
	for _, c := range s.containers {
		s.wanted = s.wanted || c == nil
	}
	return empty, nil
}

func (s *service) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	return s.unsupported(r.ID, "Exec")
}

// ResizePty sets the size of the terminal.
func (s *service) ResizePty(_ context.Context, r *taskapi.ResizePtyRequest) (*ptypes.Empty, error) {
	c, err := s.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return empty, c.streams.resize(r.Width, r.Height)
}

func (s *service) Pause(_ context.Context, r *taskapi.PauseRequest) (*ptypes.Empty, error) {
	return s.unsupported(r.ID, "Pause")
}

func (s *service) Resume(_ context.Context, r *taskapi.ResumeRequest) (*ptypes.Empty, error) {
	return s.unsupported(r.ID, "Resume")
}

func (s *service) Checkpoint(_ context.Context, r *taskapi.CheckpointTaskRequest) (*ptypes.Empty, error) {
	return s.unsupported(r.ID, "Checkpoint")
}

func (s *service) Update(_ context.Context, r *taskapi.UpdateTaskRequest) (*ptypes.Empty, error) {
	return s.unsupported(r.ID, "Update")
}

func (s *service) Stats(_ context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	_, err := s.unsupported(r.ID, "Stats")
	return nil, err
}

func taskStart(id string, pid int) *eventstypes.TaskStart {
	return &eventstypes.TaskStart{ContainerID: id, Pid: uint32(pid)}
}

// taskExit is the exit of a process; for a container's first one both ids are
// the container's.
func taskExit(containerID, id string, e exitStatus) *eventstypes.TaskExit {
	return &eventstypes.TaskExit{
		ContainerID: containerID, ID: id, Pid: uint32(e.Pid),
		ExitStatus: uint32(e.Status), ExitedAt: protobuf.ToTimestamp(e.At),
	}
}
