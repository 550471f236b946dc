package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/seccomp"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// A process is one of a container, as containerd knows them: the first one, or an
// exec. What runs is its child.
//
//	launch      walled in, module loaded, parked: when the container is created, or
//	            as part of an exec's start
//	start       the guest runs
//	supervise   the guest has ended: TaskExit, done
//	release     nothing is left
type process struct {
	execID    string // empty for the first one
	container *container
	spec      *specs.Process
	streams   *streams

	mu      sync.Mutex
	phase   phase               // guarded by mu
	child   *child              // guarded by mu; nil until launched
	settled chan struct{}       // guarded by mu; closed when no start is in flight
	counted *telemetry.Instance // guarded by mu; nil until the guest may run
	exit    exitStatus          // valid once done is closed
	done    chan struct{}       // closed once the exit has been recorded and sent

	following sync.WaitGroup // of the child's mounts
}

// newProcess opens the streams of a process. They are closed by its release.
func newProcess(ctx context.Context, c *container, execID string, spec *specs.Process, paths stdio.Stdio) (_ *process, err error) {
	p := &process{
		execID: execID, container: c, spec: spec,
		phase: created, settled: make(chan struct{}), done: make(chan struct{}),
	}
	close(p.settled)
	err = telemetry.Stage(ctx, telemetry.StdioOpen, func(ctx context.Context) (err error) {
		p.streams, err = openStreams(ctx, p.id(), paths, c.owner)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.streams.onSignal = func(sig unix.Signal) { _ = p.kill(sig) } // gone already, or will be
	if size := spec.ConsoleSize; paths.Terminal && size != nil {
		if err := p.streams.resize(uint32(size.Width), uint32(size.Height)); err != nil {
			return nil, errors.Join(err, p.streams.close())
		}
	}
	return p, nil
}

// id is what events call the process.
func (p *process) id() string {
	if p.execID == "" {
		return p.container.id
	}
	return p.execID
}

// log is the logger of ctx, which is one of the container, for the process.
func (p *process) log(ctx context.Context) *log.Entry {
	l := log.G(ctx)
	if p.execID != "" {
		l = l.WithField(string(telemetry.ExecID), p.execID)
	}
	return l
}

func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		return 0
	}
	return p.child.pid
}

// launch starts the child, inside the walls that cfg describes, and sees it
// through to the point where it has loaded the module and waits to be started. It
// calls cgroupMade before there is a child.
func (p *process) launch(ctx context.Context, cfg sandbox.Config, cgroupMade func() error) error {
	for attempt := 1; ; attempt++ {
		c, err := p.tryLaunch(ctx, cfg, cgroupMade)
		if err == nil {
			p.mu.Lock()
			p.child = c
			p.mu.Unlock()
			p.streams.handOver()
			// It may have changed meanwhile.
			if err := p.container.followMemoryLimit(); err != nil {
				p.log(ctx).WithError(err).Warn("memory limit")
			}
			return nil
		}
		var e *instance.Error
		if !errors.As(err, &e) || e.Kind != instance.StaleCache || attempt == 2 {
			return classify(err)
		}
		// The broken entry has been dropped; a second one would be no accident.
		if p.execID == "" {
			p.container.poststop(ctx) // the process that hooks have been told of is gone
		}
	}
}

// classify gives the error of an instance process the class containerd knows.
func classify(err error) error {
	var e *instance.Error
	if errors.As(err, &e) && e.Kind == instance.BadRequest {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

func (p *process) tryLaunch(ctx context.Context, cfg sandbox.Config, cgroupMade func() error) (_ *child, err error) {
	var walls *sandbox.Walls
	err = telemetry.Stage(ctx, telemetry.SandboxPrepare, func(context.Context) (err error) {
		walls, err = sandbox.NewWalls(p.container.host.stage, cfg)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer walls.Close()
	b := p.build(ctx, walls)
	defer b.end()
	if err := cgroupMade(); err != nil {
		return nil, err
	}
	limits, err := p.container.limits()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = limits.explain(err)
			if p.execID != "" {
				p.container.host.tellOOM(ctx, p.container.id, p.container.cgroup)
			}
		}
	}()
	told := p.container.bundle.instanceConfig(p.spec)
	told.Observe = p.container.host.observe
	var c *child
	err = telemetry.Stage(ctx, telemetry.InstanceSpawn, func(context.Context) (err error) {
		c, err = startChild(ctx, instance.RoleInstance, told, limits.memory, walls, p.container.cgroup, p.streams.child)
		return err
	})
	if err != nil {
		return nil, err
	}
	if profile := p.container.bundle.spec.Linux.Seccomp; seccomp.Notifies(profile) {
		c.onListener = func(f *os.File) error { return p.tellAgent(ctx, profile, c.pid, f) }
	}
	stop := context.AfterFunc(ctx, func() { _ = c.kill(unix.SIGKILL) })
	err = p.wallIn(ctx, c, walls, b)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.destroy()
		return nil, err
	}
	if f := walls.Follower(); f != nil {
		p.following.Go(func() { // ends with the child
			f.Run(c.pid, int(c.pidfd.Fd()), func(err error) {
				p.log(ctx).WithError(err).Warn("show what the host has mounted")
			})
		})
	}
	return c, nil
}

// A building is what is made of the walls while the process is born, and of what is read
// through them while it starts up: it needs neither before it is told to load.
type building struct {
	born chan struct{}
	stop context.CancelFunc
	done chan struct{}
	// Valid once born is closed.
	child *child
	// Valid once done is closed.
	module *runnable
	err    error
}

var errNotBorn = errors.New("there is no process")

// build begins to build the walls, and once there is a process resolves the module. The
// caller must call end.
func (p *process) build(ctx context.Context, walls *sandbox.Walls) *building {
	ctx, stop := context.WithCancel(ctx)
	b := &building{born: make(chan struct{}), stop: stop, done: make(chan struct{})}
	go func() { // ends with end at the latest
		defer close(b.done)
		b.module, b.err = p.buildAll(ctx, walls, b)
	}()
	return b
}

func (p *process) buildAll(ctx context.Context, walls *sandbox.Walls, b *building) (*runnable, error) {
	err := telemetry.Stage(ctx, telemetry.SandboxBuild, func(ctx context.Context) error {
		var hooks func() error
		if p.execID == "" && p.container.bundle.hasCreateHooks() {
			hooks = func() error { // they are told its pid
				if err := b.awaitChild(ctx); err != nil {
					return err
				}
				return p.container.bundle.createHooks(ctx, p.container.id, b.child, walls)
			}
		}
		return walls.Build(hooks, stepsOf(ctx))
	})
	var failed *hookError
	if err != nil && !errors.As(err, &failed) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument) // what the bundle asks for cannot be had
	}
	if err != nil {
		return nil, err
	}
	// To compile it for nobody would not be worth the while.
	if err := b.awaitChild(ctx); err != nil {
		return nil, err
	}
	m, err := p.module(ctx, walls)
	if err != nil {
		return nil, err
	}
	if m.artifact != nil {
		err = walls.Attach(m.artifact.Dir)
	}
	if err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

// awaitChild waits until there is a process.
func (b *building) awaitChild(ctx context.Context) error {
	select {
	case <-b.born:
		return nil
	case <-ctx.Done():
		return errNotBorn
	}
}

// wait waits until all is built around c.
func (b *building) wait(c *child) (*runnable, error) {
	b.child = c
	close(b.born)
	<-b.done
	return b.module, b.err
}

// end gives up what is not built yet.
func (b *building) end() {
	b.stop()
	<-b.done
	if b.module != nil {
		b.module.end()
	}
}

// wallIn waits for the walls around c, and has it load the module: see packages sandbox
// and instance.
func (p *process) wallIn(ctx context.Context, c *child, walls *sandbox.Walls, b *building) error {
	if err := walls.Limit(c.pid); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument) // what the bundle asks for cannot be had
	}
	m, err := b.wait(c)
	if err != nil {
		return err
	}
	load, bytes, verified := instance.Message{Load: &m.entry}, []*os.File(nil), make(chan error, 1)
	if m.artifact != nil {
		// While it is loaded, which runs nothing of it.
		go func() { verified <- m.artifact.Verify() }()
	} else {
		bytes = append(bytes, m.file)
		verified <- nil
	}
	told := time.Now()
	err = c.ask(load, bytes...)
	var e *instance.Error
	if broken := <-verified; broken != nil {
		err = &instance.Error{Text: broken.Error(), Kind: instance.StaleCache}
	}
	if err != nil && !errors.As(err, &e) {
		telemetry.Past(ctx, telemetry.ModuleLoad, told, err) // it has not lived to send that
	}
	if err != nil && p.container.bundle.spec.Linux.Seccomp != nil {
		err = fmt.Errorf("under the container's seccomp profile: %w", err)
		// There is little else that it could have died of.
		if !errors.As(err, &e) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	if errors.As(err, &e) && e.Kind == instance.StaleCache && m.artifact != nil {
		err = errors.Join(err, p.container.host.cache.Discard(ctx, m.artifact, err))
	}
	if err != nil {
		return err
	}
	return telemetry.Stage(ctx, telemetry.SandboxEnter, func(context.Context) error { return walls.Enter() })
}

// A runnable is the module of a process as its engine wants it: compiled, or as it is.
type runnable struct {
	*located
	artifact *module.Artifact // nil for an interpreter
	file     *os.File         // nil for a compiler
}

func (r *runnable) end() {
	if r.artifact != nil {
		r.artifact.Close()
	}
	if r.file != nil {
		r.file.Close()
	}
	_ = r.close.Close() // it was only read
}

// module is the process's. The caller verifies what is compiled, and ends it.
func (p *process) module(ctx context.Context, walls *sandbox.Walls) (r *runnable, err error) {
	engine, err := p.container.bundle.engine(p.spec)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	r = &runnable{}
	err = telemetry.Stage(ctx, telemetry.ModuleResolve, func(ctx context.Context) (err error) {
		trace.SpanFromContext(ctx).SetAttributes(telemetry.Engine.String(string(engine)))
		r.located, err = p.resolve(ctx, walls)
		return err
	})
	if err != nil {
		return nil, err
	}
	if engine == instance.Interpreter {
		r.file, err = r.open(ctx)
	} else {
		err = telemetry.Stage(ctx, telemetry.ModuleCompile, func(ctx context.Context) (err error) {
			r.artifact, err = p.compile(ctx, r.located)
			return err
		})
	}
	if err != nil {
		r.end()
		return nil, fmt.Errorf("entry point %s: %w", r.entry, err)
	}
	return r, nil
}

// resolve finds the module, and reads it for its digest if it is a file. The caller
// closes it.
func (p *process) resolve(ctx context.Context, walls *sandbox.Walls) (*located, error) {
	entry, f, err := findEntry(ctx, walls.Open, p.spec)
	if errors.Is(err, fs.ErrNotExist) {
		return p.findLayer(ctx, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(telemetry.ModulePath.String(telemetry.Text(entry.Path)))
	if source := moduleSource(walls, f); source != "" {
		span.SetAttributes(telemetry.ModuleSource.String(source))
	}
	if err = module.Check(f); err != nil {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	var info os.FileInfo
	if err == nil {
		info, err = f.Stat()
	}
	if err == nil && info.Size() > module.MaxSize {
		err = fmt.Errorf("it has %d bytes: %d are the most: %w", info.Size(), int64(module.MaxSize), errdefs.ErrInvalidArgument)
	}
	var id module.Identity
	if err == nil {
		id, err = module.Identify(f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("entry point %s: %w", entry.Path, err)
	}
	span.SetAttributes(telemetry.ModuleDigest.String(id.Digest), telemetry.ModuleSize.Int64(id.Size))
	return &located{entry, id, func(context.Context) (*os.File, error) { return f, nil }, f}, nil
}

// compile returns what a module was compiled to; or has it compiled.
func (p *process) compile(ctx context.Context, m *located) (*module.Artifact, error) {
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(telemetry.ModuleDigest.String(m.id.Digest), telemetry.ModuleSize.Int64(m.id.Size))
	a, err := p.container.host.cache.Get(ctx, m.id, m.open, p.container.compiler(p.spec), p.container.bundle.spare())
	if err != nil {
		return nil, err
	}
	span.SetAttributes(telemetry.CacheHit.Bool(a.Hit))
	if span.SpanContext().IsValid() { // measured, be it sampled or not
		span.SetAttributes(telemetry.CompiledSize.Int64(a.Size))
		telemetry.CacheLookup(ctx, a.Hit, m.id.Size, a.Size)
	}
	return a, nil
}

// start lets the guest run. One of several at the same time gets to do it.
func (p *process) start(ctx context.Context) (pid int, err error) {
	c := p.container
	p.mu.Lock()
	if err := p.phase.to(starting); err != nil {
		p.mu.Unlock()
		return 0, fmt.Errorf("start %s: %w", p.id(), err)
	}
	settled := make(chan struct{})
	p.settled = settled
	p.mu.Unlock()
	defer close(settled)

	if p.execID != "" {
		if err := c.launchExec(ctx, p); err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			return 0, errors.Join(fmt.Errorf("exec %s: %w", p.execID, err), p.phase.to(created))
		}
	}
	// A child that was killed in the meantime has been started all the same: its
	// exit follows.
	env := p.child.relay.Run(ctx)
	if told, err := c.bundle.tellsTrace(p.spec); err != nil || !told { // err: not one that came this far
		env = nil
	}
	err = p.child.control.Send(instance.Message{Start: true, Env: env})
	if err != nil {
		p.log(ctx).WithError(err).Debug("start: the process is gone")
	}
	if p.execID == "" {
		c.host.outbox.send(ctx, taskStart(c.id, p.child.pid))
	} else {
		c.host.outbox.send(ctx, &eventstypes.TaskExecStarted{ContainerID: c.id, ExecID: p.execID, Pid: uint32(p.child.pid)})
		go p.supervise() // ends with the child, which ends with the shim
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counted = telemetry.InstanceStarted(p.child.size.Get)
	return p.child.pid, p.phase.to(running)
}

// supervise sees the process to its end. It runs from the moment its existence
// has been announced.
func (p *process) supervise() {
	c := p.container
	<-p.child.exited
	<-p.startSettled() // the exit must not overtake the start
	execs := p.execID == "" && c.endExecs()
	p.exit = exitStatus{At: p.child.at, Pid: p.child.pid, Status: p.child.reported()}
	oom := c.host.tellOOM(c.alive, c.id, c.cgroup)
	span := p.traceExit(oom)
	p.countExit(oom)
	if execs {
		span.AddEvent(telemetry.EventExecsEnded)
	}
	var errs []error
	if p.execID == "" {
		errs = append(errs, p.exit.write(c.bundle.path))
		span.AddEvent(telemetry.EventExitRecorded)
	}
	p.streams.drain(drainTime)
	span.AddEvent(telemetry.EventStdioDrained)
	p.mu.Lock()
	errs = append(errs, p.phase.to(stopped))
	p.mu.Unlock()
	err := errors.Join(errs...)
	if err != nil {
		p.log(c.alive).WithError(err).Error("record exit")
	}
	c.host.outbox.send(c.alive, taskExit(c.id, p.id(), p.exit))
	telemetry.End(span, err)
	close(p.done)
}

// startSettled is closed when no start is in flight.
func (p *process) startSettled() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.settled
}

// killedBy is the reason of a run that a signal ended.
func killedBy(reported, status int) error {
	if status <= 128 {
		return nil
	}
	sig := unix.Signal(reported - 128)
	return &telemetry.Error{Type: unix.SignalName(sig), Text: fmt.Sprintf("ended by signal %d", int(sig))}
}

func (p *process) kill(sig unix.Signal) error {
	select {
	case <-p.done:
		return fmt.Errorf("%s: its process has exited: %w", p.id(), errdefs.ErrNotFound)
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.execID != "" && (p.phase == created || p.phase == starting) {
		return fmt.Errorf("exec %s: has not been started: %w", p.execID, errdefs.ErrFailedPrecondition)
	}
	if p.child == nil {
		return fmt.Errorf("exec %s: is being deleted, and was never started: %w", p.execID, errdefs.ErrNotFound)
	}
	if err := p.child.kill(sig); err != nil {
		return err
	}
	if terminates(sig) && (p.phase == pausing || p.phase == paused) {
		return p.container.cgroup.Thaw() // on version 1 a process that is frozen does not die
	}
	return nil
}

// become moves the process to the next phase.
func (p *process) become(next phase) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.phase.to(next)
}

// wait waits for the exit, or for ctx.
func (p *process) wait(ctx context.Context) (exitStatus, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return exitStatus{}, ctx.Err()
	}
}

// state is what the process is doing, and its exit if it has come to that.
func (p *process) state() (phase, exitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return p.phase, p.exit
	default:
	}
	if p.phase == stopped {
		return running, exitStatus{} // the exit is being recorded
	}
	return p.phase, exitStatus{}
}

// claimRemoval makes the caller the one who removes the process.
func (p *process) claimRemoval() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.execID != "" && p.phase == created {
		return p.phase.to(deleting)
	}
	select {
	case <-p.done:
	default:
		return fmt.Errorf("delete %s: its process is running: %w", p.id(), errdefs.ErrFailedPrecondition)
	}
	if err := p.phase.to(deleting); err != nil {
		return fmt.Errorf("delete %s: %w", p.id(), err)
	}
	return nil
}

// release frees what the shim holds of a process that runs no more, or never has.
func (p *process) release() error {
	p.mu.Lock()
	c := p.child
	p.mu.Unlock()
	p.following.Wait()
	if c != nil {
		c.release()
	}
	return p.streams.close()
}
