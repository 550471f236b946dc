package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/cgroup"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// pidFile of the bundle has the pid of the container's first process, for
// `delete` after a crash of the shim.
const pidFile = "init.pid"

// host is what the containers of a shim share.
type host struct {
	spawner *sandbox.Spawner
	cache   *module.Cache
	outbox  *outbox
}

// A container is one wasm container.
//
//	newContainer   mounts, cgroup, instance process: walled in, module loaded, parked
//	start          the guest runs
//	supervise      the guest has ended: exit.json, TaskExit, done
//	remove         everything newContainer made is gone
type container struct {
	id      string
	bundle  *bundle
	host    *host
	streams *streams
	cgroup  *cgroup.Cgroup
	mounted bool
	init    *process

	mu      sync.Mutex
	phase   phase         // guarded by mu
	settled chan struct{} // guarded by mu; closed when no start is in flight
	exit    exitStatus    // valid once done is closed
	done    chan struct{} // closed once the exit has been recorded and sent
}

// newContainer does all that can be done before the guest may run, and all that
// can fail. When it fails it leaves nothing behind.
func newContainer(ctx context.Context, h *host, r *taskapi.CreateTaskRequest) (_ *container, err error) {
	c := &container{id: r.ID, host: h, phase: created, settled: make(chan struct{}), done: make(chan struct{})}
	close(c.settled)
	if r.Checkpoint != "" {
		return nil, fmt.Errorf("checkpoint: not supported: %w", errdefs.ErrInvalidArgument)
	}
	err = telemetry.Stage(ctx, telemetry.BundleLoad, func(context.Context) (err error) {
		if c.bundle, err = loadBundle(r.Bundle); err != nil {
			return err
		}
		c.cgroup, err = c.bundle.cgroup(r.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	// The cgroup is made while the rest is: on version 1 that is dozens of writes.
	cgroupMade := sync.OnceValue(func() error {
		return telemetry.Stage(ctx, telemetry.CgroupCreate, func(context.Context) error { return c.cgroup.Create() })
	})
	go cgroupMade() // waited for on every way out of here
	defer func() {
		if err != nil {
			_ = cgroupMade() // only that it has ended counts here
			if c.init != nil {
				_ = c.init.kill(unix.SIGKILL) // gone already, or will be
			}
			// A cancelled request is a common reason to be here.
			if e := c.tearDown(context.WithoutCancel(ctx)); e != nil {
				log.G(ctx).WithError(e).WithField("id", c.id).Error("clean up after a failed create")
			}
		}
	}()
	c.streams, err = openStreams(ctx, c.id, stdio.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}, ioOwner(r.Options))
	if err != nil {
		return nil, err
	}
	if size := c.bundle.spec.Process.ConsoleSize; r.Terminal && size != nil {
		if err := c.streams.resize(uint32(size.Width), uint32(size.Height)); err != nil {
			return nil, err
		}
	}
	if err := telemetry.Stage(ctx, telemetry.RootfsMount, func(context.Context) error { return c.mountRootfs(r) }); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		c.init, err = c.launch(ctx, cgroupMade)
		if err == nil {
			break
		}
		// The broken entry has been dropped; a second one would be no accident.
		var e *instance.Error
		if !errors.As(err, &e) || e.Kind != instance.StaleCache || attempt == 2 {
			return nil, classify(err)
		}
		log.G(ctx).WithError(err).WithField("id", c.id).Warn("compile cache: entry dropped, compiling again")
	}
	c.streams.onSignal = func(sig unix.Signal) { _ = c.init.kill(sig) } // gone already, or will be
	c.streams.handOver()
	if err := shim.WritePidFile(c.bundle.path+"/"+pidFile, c.init.pid); err != nil {
		return nil, fmt.Errorf("pid file: %w", err)
	}
	return c, nil
}

// classify gives the error of an instance process the class containerd knows.
func classify(err error) error {
	var e *instance.Error
	if errors.As(err, &e) && e.Kind == instance.BadRequest {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

func (c *container) mountRootfs(r *taskapi.CreateTaskRequest) error {
	if len(r.Rootfs) == 0 {
		return nil
	}
	if err := os.Mkdir(c.bundle.mountpoint(), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("root file system: %w", err)
	}
	mounts := make([]mount.Mount, len(r.Rootfs))
	for i, m := range r.Rootfs {
		mounts[i] = mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	c.mounted = true // in part, should it fail
	if err := mount.All(mounts, c.bundle.mountpoint()); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	return nil
}

// launch starts the instance process and sees it through to the point where it
// is walled in, has loaded the module, and waits to be started.
func (c *container) launch(ctx context.Context, cgroupMade func() error) (_ *process, err error) {
	cfg, err := c.bundle.walls()
	if err != nil {
		return nil, err
	}
	walls, err := sandbox.NewWalls(cfg)
	if err != nil {
		return nil, err
	}
	defer walls.Close()
	if err := cgroupMade(); err != nil {
		return nil, err
	}
	var p *process
	err = telemetry.Stage(ctx, telemetry.InstanceSpawn, func(context.Context) (err error) {
		p, err = startProcess(ctx, c.host.spawner, instance.RoleInstance, c.bundle.instanceConfig(), walls, c.cgroup, c.streams.child)
		return err
	})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.kill(unix.SIGKILL) })
	err = c.wallIn(ctx, p, walls)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil {
		return p, nil
	}
	p.destroy()
	return nil, err
}

// wallIn builds the walls around p, which is starting up meanwhile, and has it
// load the module in between: see packages sandbox and instance.
func (c *container) wallIn(ctx context.Context, p *process, walls *sandbox.Walls) error {
	err := telemetry.Stage(ctx, telemetry.SandboxBuild, func(context.Context) error {
		if err := walls.Limit(p.pid); err != nil {
			return err
		}
		return walls.Build()
	})
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument) // what the bundle asks for cannot be had
	}
	entry, artifact, err := c.resolve(ctx, walls)
	if err != nil {
		return err
	}
	err = walls.Attach(artifact.Dir)
	artifact.Dir.Close()
	if err != nil {
		return err
	}
	err = p.ask(instance.Message{Load: &entry})
	var e *instance.Error
	if errors.As(err, &e) && e.Kind == instance.StaleCache {
		err = errors.Join(err, c.host.cache.Drop(artifact.Digest))
	}
	if err != nil {
		return err
	}
	return telemetry.Stage(ctx, telemetry.SandboxEnter, func(context.Context) error { return walls.Enter() })
}

// resolve finds the module, and what it was compiled to; or has it compiled.
func (c *container) resolve(ctx context.Context, walls *sandbox.Walls) (_ module.Entry, _ *module.Artifact, err error) {
	ctx, span := telemetry.Start(ctx, telemetry.ModuleResolve)
	defer func() { telemetry.End(span, err) }()
	p := c.bundle.spec.Process
	entry, f, err := module.Find(walls.Open, p.Args[0], p.Cwd, c.bundle.searchPath())
	if err != nil {
		return entry, nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	span.SetAttributes(telemetry.ModulePath.String(entry.Path))
	if err := module.Check(f); err != nil {
		return entry, nil, fmt.Errorf("entry point %s: %w: %w", entry.Path, err, errdefs.ErrInvalidArgument)
	}
	a, err := c.host.cache.Get(ctx, f, c.host.compile)
	if err != nil {
		return entry, nil, fmt.Errorf("entry point %s: %w", entry.Path, err)
	}
	span.SetAttributes(telemetry.ModuleDigest.String(a.Digest), telemetry.ModuleSize.Int64(a.Size), telemetry.CacheHit.Bool(a.Hit))
	return entry, a, nil
}

// compile is a [module.Compiler]: a process of its own, without a root file
// system, a network or a user, that ends with the compilation.
func (h *host) compile(ctx context.Context, f, dir *os.File) error {
	ns, err := sandbox.NewNamespaces([]specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
	})
	if err != nil {
		return err
	}
	walls, err := sandbox.NewWalls(sandbox.Config{
		Base: dir.Name(), Namespaces: ns,
		User: specs.User{UID: module.CompilerUser, GID: module.CompilerUser},
	})
	if err != nil {
		return err
	}
	defer walls.Close()
	p, err := startProcess(ctx, h.spawner, instance.RoleCompile, instance.Config{Umask: 0o022}, walls, nil, [3]*os.File{nil, nil, os.Stderr})
	if err != nil {
		return err
	}
	defer p.destroy()
	defer context.AfterFunc(ctx, func() { _ = p.kill(unix.SIGKILL) })()
	if err := walls.Build(); err != nil {
		return err
	}
	if err := walls.Attach(dir); err != nil {
		return err
	}
	err = p.ask(instance.Message{Compile: true}, f)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// supervise sees the container's first process to its end. It runs from the
// moment the task's creation has been announced.
func (c *container) supervise() {
	<-c.init.exited
	c.mu.Lock()
	settled := c.settled
	c.mu.Unlock()
	<-settled // the exit must not overtake the start
	c.streams.drain(drainTime)

	c.exit = exitStatus{At: c.init.at, Pid: c.init.pid, Status: c.init.reported()}
	c.init.relay.Finish(c.exit.At, c.exit.Status, killedBy(c.exit.Status, c.init.status))
	if err := c.exit.write(c.bundle.path); err != nil {
		log.L.WithError(err).WithField("id", c.id).Error("record exit")
	}
	c.mu.Lock()
	err := c.phase.to(stopped)
	c.mu.Unlock()
	if err != nil {
		log.L.WithError(err).WithField("id", c.id).Error("record exit")
	}
	c.host.outbox.send(taskExit(c.id, c.id, c.exit))
	close(c.done)
}

// killedBy is the reason of a run that a signal ended.
func killedBy(reported, status int) error {
	if status <= 128 {
		return nil
	}
	return fmt.Errorf("ended by signal %d", reported-128)
}

// start lets the guest run. One of several at the same time gets to do it.
func (c *container) start(ctx context.Context) (pid int, err error) {
	c.mu.Lock()
	if err := c.phase.to(starting); err != nil {
		c.mu.Unlock()
		return 0, fmt.Errorf("start %s: %w", c.id, err)
	}
	settled := make(chan struct{})
	c.settled = settled
	c.mu.Unlock()
	defer close(settled)

	// A process that was killed in the meantime has been started all the same:
	// its exit follows.
	if err := c.init.control.Send(instance.Message{Start: &instance.Start{TraceContext: c.init.relay.Offer(ctx)}}); err != nil {
		log.G(ctx).WithError(err).WithField("id", c.id).Debug("start: the process is gone")
	}
	c.host.outbox.send(taskStart(c.id, c.init.pid))
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.init.pid, c.phase.to(running)
}

func (c *container) kill(sig unix.Signal) error {
	select {
	case <-c.done:
		return fmt.Errorf("container %s: its process has exited: %w", c.id, errdefs.ErrNotFound)
	default:
	}
	return c.init.kill(sig)
}

// wait waits for the exit, or for ctx.
func (c *container) wait(ctx context.Context) (exitStatus, error) {
	select {
	case <-c.done:
		return c.exit, nil
	case <-ctx.Done():
		return exitStatus{}, ctx.Err()
	}
}

// state is what the container is doing, and its exit if it has come to that.
func (c *container) state() (phase, exitStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return c.phase, c.exit
	default:
	}
	if c.phase == stopped {
		return running, exitStatus{} // the exit is being recorded
	}
	return c.phase, exitStatus{}
}

// remove undoes newContainer, once the process has exited; one that was never
// started is killed first. It may be called again when it failed.
func (c *container) remove(ctx context.Context) (exitStatus, error) {
	if p, _ := c.state(); p == created {
		if err := c.kill(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return exitStatus{}, err
		}
		if _, err := c.wait(ctx); err != nil {
			return exitStatus{}, err
		}
	}
	c.mu.Lock()
	select {
	case <-c.done:
	default:
		c.mu.Unlock()
		return exitStatus{}, fmt.Errorf("delete %s: its process is running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	err := c.phase.to(deleting)
	c.mu.Unlock()
	if err != nil {
		return exitStatus{}, fmt.Errorf("delete %s: %w", c.id, err)
	}
	err = c.tearDown(context.WithoutCancel(ctx))
	next := deleted
	if err != nil {
		next = stopped
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit, errors.Join(err, c.phase.to(next))
}

// tearDownTimeout bounds a removal; containerd gives up on it after a while.
const tearDownTimeout = 10 * time.Second

// tearDown removes what newContainer made, as far as it got. Its process has
// exited, or there is none.
func (c *container) tearDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tearDownTimeout)
	defer cancel()
	var errs []error
	if c.init != nil {
		c.init.release()
	}
	if c.mounted {
		errs = append(errs, telemetry.Stage(ctx, telemetry.RootfsUnmount, func(context.Context) error {
			if err := mount.UnmountRecursive(c.bundle.mountpoint(), unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount root file system: %w", err)
			}
			c.mounted = false
			return nil
		}))
	}
	errs = append(errs, telemetry.Stage(ctx, telemetry.CgroupDestroy, func(context.Context) error { return c.cgroup.Destroy() }))
	if c.streams != nil {
		errs = append(errs, c.streams.close())
	}
	return errors.Join(errs...)
}
