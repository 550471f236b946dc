package shim

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"sync"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	runctask "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/errdefs/pkg/errgrpc"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

// linux is the back end for Linux containers: containerd's own task service for
// runc, unchanged. It is started by the first of them, since a shim without one
// has no use for it.
//
// What it does with its surroundings goes through here: its events join ours in
// the outbox, and its Shutdown is never called, for it knows only of its own
// containers.
type linux struct {
	ctx    context.Context
	outbox *outbox

	start     func() (taskapi.TTRPCTaskService, error) // once
	stop      shutdown.Service                         // of the embedded service alone
	forwarded chan struct{}                            // closed when it has sent its last event

	mu      sync.Mutex
	started bool // guarded by mu
	// guarded by mu; of each container whose exit has not been seen, the deletion
	// that came before it
	pending map[string]*eventstypes.TaskDelete
}

func newLinux(ctx context.Context, o *outbox) *linux {
	l := &linux{outbox: o, forwarded: make(chan struct{}), pending: map[string]*eventstypes.TaskDelete{}}
	l.ctx, l.stop = shutdown.WithShutdown(ctx)
	l.start = sync.OnceValues(func() (taskapi.TTRPCTaskService, error) {
		s, err := runctask.NewTaskService(l.ctx, (*publisher)(l), l.stop)
		if err != nil {
			return nil, fmt.Errorf("Linux containers: %w", err)
		}
		runc.Monitor = newRuncMonitor() // the service has set another
		l.mu.Lock()
		l.started = true
		l.mu.Unlock()
		return s, nil
	})
	return l
}

// create makes a Linux container. The service reads options of one type only.
func (l *linux) create(ctx context.Context, r *taskapi.CreateTaskRequest, opts *options.Options) (backend, uint32, error) {
	s, err := l.start()
	if err != nil {
		return nil, 0, err
	}
	r = proto.CloneOf(r)
	if r.Options, err = typeurl.MarshalAnyToProto(opts); err != nil {
		return nil, 0, err
	}
	resp, err := s.Create(ctx, r)
	if err != nil {
		return nil, 0, errgrpc.ToNative(err)
	}
	return s, resp.Pid, nil
}

// close ends the service, once its events are in the outbox.
func (l *linux) close() error {
	l.stop.Shutdown()
	<-l.stop.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started {
		<-l.forwarded
	}
	return nil
}

// publisher is a linux as the embedded service sends its events to it.
type publisher linux

// Publish implements [events.Publisher]. The topic is that of the event's type.
//
// The embedded service answers Wait before it sends the exit, and a client that
// deletes at once may have that told first: Publish holds it back.
func (p *publisher) Publish(_ context.Context, _ string, event events.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *eventstypes.TaskCreate:
		p.pending[e.ContainerID] = nil
	case *eventstypes.TaskDelete:
		if _, early := p.pending[e.ContainerID]; early {
			p.pending[e.ContainerID] = e
			return nil
		}
	case *eventstypes.TaskExit:
		if e.ID != e.ContainerID {
			break
		}
		p.outbox.send(e)
		if deleted := p.pending[e.ContainerID]; deleted != nil {
			p.outbox.send(deleted)
		}
		delete(p.pending, e.ContainerID)
		return nil
	}
	p.outbox.send(event)
	return nil
}

// Close is called after the last event.
func (p *publisher) Close() error {
	close(p.forwarded)
	return nil
}

// A runcMonitor starts every runc from one thread, which lives as long as the shim.
//
// A runc is to be killed with the shim, but PR_SET_PDEATHSIG has it killed with
// the thread that started it. In this shim threads do end: those that walls are
// built by, which before may have been used for anything.
type runcMonitor struct {
	*reaper.Monitor
	work chan func()
}

func newRuncMonitor() runcMonitor {
	m := runcMonitor{reaper.Default, make(chan func())}
	go func() {
		runtime.LockOSThread()
		for f := range m.work {
			f()
		}
	}()
	return m
}

// StartLocked implements [runc.ProcessMonitor].
func (m runcMonitor) StartLocked(cmd *exec.Cmd) (exits chan runc.Exit, err error) {
	done := make(chan struct{})
	m.work <- func() {
		defer close(done)
		exits, err = m.Start(cmd)
	}
	<-done
	return exits, err
}
