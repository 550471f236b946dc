package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/shim/entry"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// service is the task service, version 3: each call looks its container up and
// leaves the work to that. Errors unwrap to errdefs'; they are put on the wire in
// one place, see [intercept].
//
// See https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md.
type service struct {
	host     *host
	linux    *linux
	shutdown func()

	mu sync.Mutex
	// guarded by mu; nil while a Create is in flight
	tasks map[string]*task
	// guarded by mu; there has been a container
	used bool
	// guarded by mu; Shutdown was called while a Create was in flight, given up by
	// its client and not ended yet
	wanted bool
}

// A task is a container as the service has it: a wasm container answers for
// itself, for all Linux containers there is one service.
type task struct {
	bundle   string
	identity identity
	backend
}

// backend are the calls that are about a container there is.
type backend interface {
	Start(context.Context, *taskapi.StartRequest) (*taskapi.StartResponse, error)
	Wait(context.Context, *taskapi.WaitRequest) (*taskapi.WaitResponse, error)
	Kill(context.Context, *taskapi.KillRequest) (*ptypes.Empty, error)
	Delete(context.Context, *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error)
	State(context.Context, *taskapi.StateRequest) (*taskapi.StateResponse, error)
	Pids(context.Context, *taskapi.PidsRequest) (*taskapi.PidsResponse, error)
	Connect(context.Context, *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error)
	Exec(context.Context, *taskapi.ExecProcessRequest) (*ptypes.Empty, error)
	ResizePty(context.Context, *taskapi.ResizePtyRequest) (*ptypes.Empty, error)
	CloseIO(context.Context, *taskapi.CloseIORequest) (*ptypes.Empty, error)
	Pause(context.Context, *taskapi.PauseRequest) (*ptypes.Empty, error)
	Resume(context.Context, *taskapi.ResumeRequest) (*ptypes.Empty, error)
	Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*ptypes.Empty, error)
	Update(context.Context, *taskapi.UpdateTaskRequest) (*ptypes.Empty, error)
	Stats(context.Context, *taskapi.StatsRequest) (*taskapi.StatsResponse, error)
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
		used, busy := s.used, len(s.tasks) > 0
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

func (s *service) lookUp(id string) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id]
}

// get finds the container of a call, in whose context lines of the log name it then.
func (s *service) get(ctx context.Context, id string) (context.Context, *task, error) {
	if t := s.lookUp(id); t != nil {
		return t.identity.in(ctx), t, nil
	}
	return ctx, nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
}

// identify is what spans say of a container; of one that is not there, nothing.
func (s *service) identify(id string) []attribute.KeyValue {
	if t := s.lookUp(id); t != nil {
		return t.identity.attrs
	}
	return nil
}

// Create makes the container and its parked process.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	opts, unknown, err := readOptions(r.Options)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	_, taken := s.tasks[r.ID]
	if !taken {
		s.tasks[r.ID] = nil
	}
	s.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("container %q: %w", r.ID, errdefs.ErrAlreadyExists)
	}
	var t *task // none yet when create panics, which must not keep the id
	var pid uint32
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t != nil {
			s.tasks[r.ID], s.wanted, s.used = t, false, true
			return
		}
		delete(s.tasks, r.ID)
		if s.wanted && len(s.tasks) == 0 {
			s.shutdown()
		}
	}()
	if t, pid, err = s.create(ctx, r, opts, unknown); err != nil {
		return nil, err
	}
	return &taskapi.CreateTaskResponse{Pid: pid}, nil
}

// create makes the container. Unknown are keys of the options that are none.
func (s *service) create(ctx context.Context, r *taskapi.CreateTaskRequest, opts *options.Options, unknown []string) (*task, uint32, error) {
	var b *bundle
	err := telemetry.Stage(ctx, telemetry.BundleLoad, func(context.Context) (err error) {
		b, err = loadBundle(r.Bundle)
		return err
	})
	identity := newIdentity(r.ID, b.annotations())
	ctx = telemetry.WithAttributes(identity.in(ctx), identity.attrs...)
	for _, key := range unknown {
		log.G(ctx).Warnf("options: %s: unknown key, ignored", key)
	}
	if err != nil {
		return nil, 0, err
	}
	c, err := newContainer(ctx, s.host, b, r, opts)
	if errors.Is(err, errLinuxContainer) {
		c, pid, err := s.linux.create(ctx, r, opts)
		if err != nil {
			return nil, 0, err
		}
		return &task{r.Bundle, identity, c}, pid, nil
	}
	if err != nil {
		return nil, 0, err
	}
	s.host.outbox.send(ctx, &eventstypes.TaskCreate{
		ContainerID: r.ID,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO:          &eventstypes.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Pid:         uint32(c.init.child.pid),
	})
	go c.init.supervise() // ends with the process, which ends with the shim
	return &task{r.Bundle, identity, c}, uint32(c.init.child.pid), nil
}

// Delete removes a process that has exited or never ran; the first one with its
// container.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	resp, err := native(t.Delete(ctx, r))
	if err != nil || r.ExecID != "" {
		return resp, err
	}
	s.mu.Lock()
	delete(s.tasks, r.ID)
	s.mu.Unlock()
	if answer, err := proto.Marshal(resp); err == nil {
		err = entry.Record(t.bundle, answer)
		if err != nil {
			log.G(ctx).WithError(err).Debug("record deletion") // `delete` will look for itself
		}
	}
	return resp, nil
}

// Connect answers for any id: containerd asks it of a shim it finds after its
// own restart.
func (s *service) Connect(ctx context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	if t := s.lookUp(r.ID); t != nil {
		return native(t.Connect(t.identity.in(ctx), r))
	}
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}, nil
}

// Shutdown ends the shim after its last container. It may be called again.
func (s *service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*ptypes.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tasks) == 0 {
		s.shutdown()
	}
	for _, t := range s.tasks {
		s.wanted = s.wanted || t == nil
	}
	return empty, nil
}

func (s *service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Start(ctx, r))
}

func (s *service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Wait(ctx, r))
}

func (s *service) Kill(ctx context.Context, r *taskapi.KillRequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Kill(ctx, r))
}

func (s *service) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.State(ctx, r))
}

// Pids are never none: containerd takes a container without processes that it
// finds at its own start for a leak, and nobody would hear how it has ended. The
// first process of one that has exited stays on the list until Delete.
func (s *service) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	resp, err := native(t.Pids(ctx, r))
	if err != nil || len(resp.Processes) > 0 {
		return resp, err
	}
	state, err := native(t.State(ctx, &taskapi.StateRequest{ID: r.ID}))
	if err != nil {
		return nil, err
	}
	return &taskapi.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: state.Pid}}}, nil
}

func (s *service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Exec(ctx, r))
}

func (s *service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.ResizePty(ctx, r))
}

func (s *service) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.CloseIO(ctx, r))
}

func (s *service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Pause(ctx, r))
}

func (s *service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Resume(ctx, r))
}

func (s *service) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Checkpoint(ctx, r))
}

func (s *service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*ptypes.Empty, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Update(ctx, r))
}

func (s *service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	ctx, t, err := s.get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return native(t.Stats(ctx, r))
}

// native takes an error off the wire: the service for Linux containers has put its
// own there already.
func native[T any](resp T, err error) (T, error) {
	if _, ok := status.FromError(err); ok {
		err = errgrpc.ToNative(err)
	}
	return resp, err
}
