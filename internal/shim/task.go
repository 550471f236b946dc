package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The calls of the task service that are about a wasm container: what they ask
// and answer in containerd's words.

var _ backend = (*container)(nil)

// Start lets a guest run; that of an exec is launched first.
func (c *container) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	pid, err := p.start(ctx)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		if err := c.poststart(ctx, pid); err != nil {
			return nil, err
		}
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

// Wait answers when the process has exited, or the client goes away.
func (c *container) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	e, err := p.wait(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.WaitResponse{ExitStatus: uint32(e.Status), ExitedAt: protobuf.ToTimestamp(e.At)}, nil
}

// Kill ends a guest for a signal.
func (c *container) Kill(_ context.Context, r *taskapi.KillRequest) (*ptypes.Empty, error) {
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.Signal > uint32(lastSignal) {
		return nil, fmt.Errorf("signal %d: %w", r.Signal, errdefs.ErrInvalidArgument)
	}
	if r.All && r.ExecID == "" {
		return empty, c.killAll(unix.Signal(r.Signal))
	}
	return empty, p.kill(unix.Signal(r.Signal))
}

// Delete removes a process that has exited or never ran.
func (c *container) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	var e exitStatus
	if r.ExecID != "" {
		e, err = c.removeExec(ctx, p)
	} else {
		e, err = c.remove(ctx)
	}
	if err != nil {
		return nil, err
	}
	resp := &taskapi.DeleteResponse{Pid: uint32(e.Pid), ExitStatus: uint32(e.Status), ExitedAt: protobuf.ToTimestamp(e.At)}
	if r.ExecID == "" {
		c.host.outbox.send(ctx, &eventstypes.TaskDelete{ContainerID: c.id, Pid: resp.Pid, ExitStatus: resp.ExitStatus, ExitedAt: resp.ExitedAt})
	}
	return resp, nil
}

// State answers at once, whatever the container is doing.
func (c *container) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	phase, e := p.state()
	resp := &taskapi.StateResponse{
		ID: p.id(), Bundle: c.bundle.path, Pid: uint32(p.pid()), Status: phase.status(), ExecID: r.ExecID,
		Stdin: p.streams.paths.Stdin, Stdout: p.streams.paths.Stdout, Stderr: p.streams.paths.Stderr,
		Terminal: p.streams.paths.Terminal,
	}
	if !e.At.IsZero() {
		resp.ExitStatus, resp.ExitedAt = uint32(e.Status), protobuf.ToTimestamp(e.At)
	}
	return resp, nil
}

// Pids lists the processes of the container: each guest is one.
func (c *container) Pids(context.Context, *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c.mu.Lock()
	processes := append([]*process{c.init}, slices.Collect(maps.Values(c.execs))...)
	c.mu.Unlock()
	resp := &taskapi.PidsResponse{}
	for _, p := range processes {
		if _, e := p.state(); p.pid() == 0 || !e.At.IsZero() {
			continue
		}
		info := &tasktypes.ProcessInfo{Pid: uint32(p.pid())}
		if p.execID != "" {
			details, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: p.execID})
			if err != nil {
				return nil, err
			}
			info.Info = details
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// Connect tells the pids of the shim and of the first process.
func (c *container) Connect(context.Context, *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(c.init.pid())}, nil
}

// CloseIO ends the standard input of a process.
func (c *container) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*ptypes.Empty, error) {
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	if !r.Stdin {
		return empty, nil
	}
	return empty, p.streams.closeStdin()
}

// Exec adds a process that runs a module in the container.
func (c *container) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	var spec *specs.Process
	if err := json.Unmarshal(r.Spec.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("exec %s: specification of the process: %w: %w", r.ExecID, err, errdefs.ErrInvalidArgument)
	}
	return empty, c.exec(ctx, r.ExecID, spec, stdio.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal})
}

// ResizePty sets the size of a process's terminal.
func (c *container) ResizePty(_ context.Context, r *taskapi.ResizePtyRequest) (*ptypes.Empty, error) {
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	return empty, p.streams.resize(r.Width, r.Height)
}

// Pause stops the guests where they are.
func (c *container) Pause(context.Context, *taskapi.PauseRequest) (*ptypes.Empty, error) {
	return empty, c.pause()
}

// Resume lets them go on.
func (c *container) Resume(context.Context, *taskapi.ResumeRequest) (*ptypes.Empty, error) {
	return empty, c.resume()
}

// Checkpoint is not there: the state of a guest is the engine's.
func (c *container) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*ptypes.Empty, error) {
	return nil, fmt.Errorf("checkpoint of a wasm container: %w", errdefs.ErrNotImplemented)
}

// Update changes the limits of the container.
func (c *container) Update(_ context.Context, r *taskapi.UpdateTaskRequest) (*ptypes.Empty, error) {
	exited := func() error {
		if _, e := c.init.state(); !e.At.IsZero() {
			return fmt.Errorf("update %s: its process has exited: %w", c.id, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	if err := exited(); err != nil {
		return nil, err
	}
	err := update(c.cgroup, r.Resources)
	if err == nil {
		err = c.followMemoryLimit()
	}
	if err != nil && exited() != nil {
		err = exited() // and may have been deleted, with its cgroup
	}
	return empty, err
}

// Stats are the figures of the container's cgroup.
func (c *container) Stats(context.Context, *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	stats, err := metrics(c.cgroup)
	if phase, _ := c.init.state(); phase == deleting || phase == deleted {
		return nil, fmt.Errorf("stats of %s: it is being deleted: %w", c.id, errdefs.ErrNotFound) // with its cgroup
	}
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: stats}, nil
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
