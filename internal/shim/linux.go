package shim

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	runctask "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// linux is the back end for Linux containers: containerd's own task service for
// runc, unchanged. It is started by the first of them, since a shim without one
// has no use for it.
//
// What it does with its surroundings goes through here: its events join ours in
// the outbox, and its Shutdown is never called, for it knows only of its own
// containers.
type linux struct {
	outbox *outbox

	start     func() (taskapi.TTRPCTaskService, error) // once
	stop      shutdown.Service                         // of the embedded service alone
	cancel    context.CancelFunc                       // of its context
	forwarded chan struct{}                            // closed when it has sent its last event

	mu      sync.Mutex
	started bool                       // guarded by mu
	endings map[string]*ending         // guarded by mu; of each container whose exit is to come
	runs    map[linuxProcess]*linuxRun // guarded by mu; of each process that is traced, and whose exit is to come
}

// A linuxProcess is one of a Linux container; the first one's exec id is empty.
type linuxProcess struct{ id, execID string }

// A linuxRun is the run of a process, as far as it is in a trace.
type linuxRun struct {
	ctx context.Context // has the span that the process was started in
	oom []time.Time
}

// An ending is that of a container, as far as it is an event.
type ending struct {
	ctx     context.Context         // of its Create, to log with
	deleted *eventstypes.TaskDelete // came before the exit
	told    chan struct{}           // closed when the exit is in the outbox
}

// A linuxContainer is one, at the service for all of them.
type linuxContainer struct {
	taskapi.TTRPCTaskService
	service *linux
	ending  *ending

	mu      sync.Mutex
	started map[string]bool // guarded by mu; by exec id; the container's own is empty
}

// Start lets only one call for a process through at a time, and none after one
// that succeeded. The service miscounts its processes otherwise: a second start of
// an exec ends in a panic that no interceptor can catch.
func (c *linuxContainer) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c.mu.Lock()
	again := c.started[r.ExecID]
	c.started[r.ExecID] = true
	c.mu.Unlock()
	if again {
		return nil, fmt.Errorf("start %s %s: it has been started: %w", r.ID, r.ExecID, errdefs.ErrFailedPrecondition)
	}
	c.service.follow(ctx, linuxProcess{r.ID, r.ExecID})
	resp, err := staged(ctx, telemetry.RuncStart, r, c.TTRPCTaskService.Start)
	if err != nil {
		c.forget(r.ExecID)
		c.service.unfollow(linuxProcess{r.ID, r.ExecID})
	}
	return resp, err
}

// staged makes a call of the service in a span.
func staged[Request, Response any](ctx context.Context, name string, r *Request, call func(context.Context, *Request) (*Response, error)) (resp *Response, err error) {
	_ = telemetry.Stage(ctx, name, func(ctx context.Context) error { // the error as it was on the wire
		resp, err = native(call(ctx, r))
		return err
	})
	return resp, err
}

func (c *linuxContainer) forget(execID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.started, execID)
}

// endingTime bounds how long Delete waits for the exit to be told.
const endingTime = 2 * time.Second

// Delete answers when the exit has been told: the service does not wait for that,
// and the shim, which may be about to end, would take the event along.
func (c *linuxContainer) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := staged(ctx, telemetry.RuncDelete, r, c.TTRPCTaskService.Delete)
	if err != nil {
		return resp, err
	}
	if r.ExecID != "" {
		c.forget(r.ExecID)
		return resp, nil
	}
	select {
	case <-c.ending.told:
	case <-time.After(endingTime):
		log.G(ctx).Error("deleted, and nobody has told how it ended")
	}
	return resp, nil
}

func newLinux(ctx context.Context, o *outbox) *linux {
	l := &linux{outbox: o, forwarded: make(chan struct{}), endings: map[string]*ending{}, runs: map[linuxProcess]*linuxRun{}}
	_, l.stop = shutdown.WithShutdown(ctx)
	// Not one of package shutdown, whose error is its own: the service's loop for OOM
	// events ends with an error of package context only. It would spin, and log, for
	// as long as the shim has yet to flush.
	ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	l.start = sync.OnceValues(func() (taskapi.TTRPCTaskService, error) {
		s, err := runctask.NewTaskService(ctx, (*publisher)(l), l.stop)
		if err != nil {
			return nil, fmt.Errorf("start the service for Linux containers: %w", err)
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
	e := &ending{ctx: context.WithoutCancel(ctx), told: make(chan struct{})}
	l.mu.Lock()
	l.endings[r.ID] = e
	l.mu.Unlock()
	resp, err := staged(ctx, telemetry.RuncCreate, r, s.Create)
	if err != nil {
		l.mu.Lock()
		delete(l.endings, r.ID)
		l.mu.Unlock()
		return nil, 0, err
	}
	return &linuxContainer{TTRPCTaskService: s, service: l, ending: e, started: map[string]bool{}}, resp.Pid, nil
}

// follow has the exit of a process that is started now be in the trace of ctx.
func (l *linux) follow(ctx context.Context, p linuxProcess) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs[p] = &linuxRun{ctx: context.WithoutCancel(ctx)}
}

func (l *linux) unfollow(p linuxProcess) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.runs, p)
}

// traceLocked has the trace of a process tell of an event.
func (l *linux) traceLocked(event events.Event) {
	switch e := event.(type) {
	case *eventstypes.TaskOOM:
		if run := l.runs[linuxProcess{e.ContainerID, ""}]; run != nil {
			run.oom = append(run.oom, time.Now())
		}
	case *eventstypes.TaskExit:
		p := linuxProcess{id: e.ContainerID}
		if e.ID != e.ContainerID {
			p.execID = e.ID
		}
		run := l.runs[p]
		if run == nil {
			return
		}
		delete(l.runs, p)
		span := startExit(run.ctx, trace.SpanContext{}, exitStatus{At: e.ExitedAt.AsTime(), Pid: int(e.Pid), Status: int(e.ExitStatus)})
		for _, at := range run.oom {
			span.AddEvent(telemetry.EventOOM, trace.WithTimestamp(at))
		}
		span.End()
	}
}

// close ends the service, once its events are in the outbox.
func (l *linux) close() error {
	l.stop.Shutdown()
	<-l.stop.Done()
	l.mu.Lock()
	started := l.started
	l.mu.Unlock()
	if started { // Publish wants the lock until then
		<-l.forwarded
	}
	l.cancel()
	return nil
}

// publisher is a linux as the embedded service sends its events to it.
type publisher linux

// Publish implements [events.Publisher]. The topic is that of the event's type.
//
// The embedded service answers Wait before it sends the exit, and a client that
// deletes at once may have that told first: Publish holds it back.
func (p *publisher) Publish(ctx context.Context, _ string, event events.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e, ok := event.(interface{ GetContainerID() string }); ok && p.endings[e.GetContainerID()] != nil {
		ctx = p.endings[e.GetContainerID()].ctx
	}
	(*linux)(p).traceLocked(event)
	switch e := event.(type) {
	case *eventstypes.TaskDelete:
		if ending := p.endings[e.ContainerID]; ending != nil {
			ending.deleted = e
			return nil
		}
	case *eventstypes.TaskExit:
		ending := p.endings[e.ContainerID]
		if ending == nil || e.ID != e.ContainerID {
			break
		}
		p.outbox.send(ctx, e)
		if ending.deleted != nil {
			p.outbox.send(ctx, ending.deleted)
		}
		delete(p.endings, e.ContainerID)
		close(ending.told)
		return nil
	}
	p.outbox.send(ctx, event)
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
