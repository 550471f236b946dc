package shim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

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
	stage    *sandbox.Stage
	cache    *module.Cache
	compiler *compiler
	outbox   *outbox
	// containerd is the address of containerd's API, namespace the one there that all of
	// this is in.
	containerd, namespace string
	state                 string // a directory, root's alone
	// observe has guests make spans of their own, where their container is traced.
	observe bool
}

// A container is one wasm container.
//
//	newContainer   mounts, cgroup, the first process: launched, not started
//	exec           another process, in the walls of the first
//	remove         everything there was is gone
type container struct {
	id      string
	bundle  *bundle
	host    *host
	cgroup  *cgroup.Cgroup
	mounted bool
	owner   owner  // of the pipes and terminals of its processes
	layer   *layer // nil where the module of the first process is a file; set by its launch
	init    *process

	// alive ends with the first process, and with it the launch of any other. It has
	// the span and the logger of Create, for what comes of no call.
	alive context.Context
	end   context.CancelCauseFunc

	mu    sync.Mutex
	execs map[string]*process // guarded by mu
	ended bool                // guarded by mu; no exec may be started any more
}

var errLinuxContainer = errors.New("not a wasm container")

// newContainer does all that can be done before the guest may run, and all that
// can fail. When it fails it leaves nothing behind.
//
// The error unwraps to [errLinuxContainer] where the container is one, and nothing
// has been touched then that its own service would want to find untouched.
func newContainer(ctx context.Context, h *host, b *bundle, r *taskapi.CreateTaskRequest, opts *options.Options) (_ *container, err error) {
	c := &container{id: r.ID, bundle: b, host: h, execs: map[string]*process{}}
	c.alive, c.end = context.WithCancelCause(context.WithoutCancel(ctx))
	var cgroupMade func() error
	defer func() {
		if err != nil {
			if cgroupMade != nil {
				_ = cgroupMade() // only that it has ended counts here
			}
			// A cancelled request is a common reason to be here.
			if e := c.tearDown(context.WithoutCancel(ctx)); e != nil {
				log.G(ctx).WithError(e).Error("clean up after a failed create")
			}
		}
	}()
	if err := telemetry.Stage(ctx, telemetry.RootfsMount, func(context.Context) error { return c.mountRootfs(r) }); err != nil {
		return nil, err
	}
	if path := c.bundle.linuxProgram(ctx); path != "" {
		// runc has to be told. A kubelet with systemd's driver gives such paths, and no
		// option where CRI has none for this runtime.
		opts.SystemdCgroup = opts.SystemdCgroup || c.bundle.inScope()
		return nil, fmt.Errorf("entry point %s: %w", path, errLinuxContainer)
	}
	var cfg sandbox.Config
	err = telemetry.Stage(ctx, telemetry.BundleCheck, func(ctx context.Context) (err error) {
		if cfg, err = c.bundle.walls(ctx); err != nil {
			return err
		}
		if r.Checkpoint != "" {
			return fmt.Errorf("checkpoint: not supported for wasm containers: %w", errdefs.ErrInvalidArgument)
		}
		// For `delete`, which is told no options, and has use for this one only.
		if opts.SystemdCgroup {
			if err := runc.WriteOptions(r.Bundle, opts); err != nil {
				return err
			}
		}
		c.cgroup, err = c.bundle.cgroup(r.ID, opts.SystemdCgroup)
		return err
	})
	if err != nil {
		return nil, err
	}
	// The cgroup is made while the rest is: on version 1 that is dozens of writes.
	cgroupMade = sync.OnceValue(func() error {
		return telemetry.Stage(ctx, telemetry.CgroupCreate, func(context.Context) error { return c.cgroup.Create() })
	})
	go cgroupMade() // waited for on every way out of here
	c.owner = owner{int(opts.IoUid), int(opts.IoGid)}
	paths := stdio.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}
	if c.init, err = newProcess(ctx, c, "", c.bundle.spec.Process, paths); err != nil {
		return nil, err
	}
	if err := c.init.launch(ctx, cfg, cgroupMade); err != nil {
		return nil, err
	}
	if err := shim.WritePidFile(c.bundle.path+"/"+pidFile, c.init.child.pid); err != nil {
		_ = c.init.child.kill(unix.SIGKILL) // gone already, or will be
		return nil, fmt.Errorf("pid file: %w", err)
	}
	return c, nil
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
		// Of their own: mounting with mapped ids writes to them, and the service for
		// Linux containers may have to mount them again.
		mounts[i] = mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: slices.Clone(m.Options)}
	}
	c.mounted = true // in part, should it fail
	if err := mount.All(mounts, c.bundle.mountpoint()); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	return nil
}

// compiler is the one for a process of the container.
func (c *container) compiler(p *specs.Process) module.Compiler {
	// Not SELinux's context: it says which files are the container's, and the
	// compiled code is the host's.
	return c.host.compiler.of(sandbox.Labels{AppArmor: c.bundle.labels(p).AppArmor})
}

// exec adds a process, which is launched when it is started.
func (c *container) exec(ctx context.Context, execID string, spec *specs.Process, paths stdio.Stdio) error {
	if execID == "" || execID == c.id { // those mean the first process, in calls and in events
		return fmt.Errorf("exec in %s: not an id for it: %q: %w", c.id, execID, errdefs.ErrInvalidArgument)
	}
	err := checkProcess(spec)
	if err == nil {
		_, err = c.bundle.wallsOfExec(spec)
	}
	if err != nil {
		return fmt.Errorf("exec %s: %w: %w", execID, err, errdefs.ErrInvalidArgument)
	}
	if err := c.acceptsExec(execID, nil); err != nil {
		return err
	}
	p, err := newProcess(ctx, c, execID, spec, paths) // not under the lock: a logger takes its time
	if err != nil {
		return fmt.Errorf("exec %s: %w", execID, err)
	}
	if err := c.acceptsExec(execID, p); err != nil {
		return errors.Join(err, p.release())
	}
	return nil
}

// acceptsExec says why a process cannot be added under the given id, or adds it.
func (c *container) acceptsExec(execID string, p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.execs[execID]; taken {
		return fmt.Errorf("exec %s: %w", execID, errdefs.ErrAlreadyExists)
	}
	if err := c.runsExecsLocked(); err != nil {
		return fmt.Errorf("exec %s: %w", execID, err)
	}
	if p != nil {
		c.execs[execID] = p
		c.host.outbox.send(c.alive, &eventstypes.TaskExecAdded{ContainerID: c.id, ExecID: execID})
	}
	return nil
}

var errEnded = fmt.Errorf("the container's first process has exited: %w", errdefs.ErrFailedPrecondition)

// runsExecsLocked says why a process cannot be added or started.
func (c *container) runsExecsLocked() error {
	if c.ended {
		return errEnded
	}
	if phase, _ := c.init.state(); phase == pausing || phase == paused {
		return fmt.Errorf("the container is %s: %w", phase, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// launchExec launches a process in the namespaces, the files and the cgroup of
// the first one.
func (c *container) launchExec(ctx context.Context, p *process) error {
	c.mu.Lock()
	err := c.runsExecsLocked()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.alive, func() { cancel(context.Cause(c.alive)) })()
	cfg, err := c.bundle.wallsOfExec(p.spec)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	cfg.Base, cfg.Rootfs, cfg.Namespaces = c.bundle.path, "/", sandbox.NamespacesOf(c.init.child.pid)
	err = p.launch(ctx, cfg, func() error {
		// The files of its namespaces are open by now, and were its own if it lives.
		return c.init.child.kill(0)
	})
	if err == nil {
		return nil // whatever has happened since: the child is there, and endExecs knows
	}
	return c.whyNotLaunched(ctx, err)
}

// dyingTime bounds how long an exec whose child was ended waits to hear that the
// first process was, too.
const dyingTime = time.Second

// whyNotLaunched is the reason an exec could not be launched: the first process
// may be on its way out, which shows in what it leaves before anybody is told.
func (c *container) whyNotLaunched(ctx context.Context, err error) error {
	// Its namespaces go first: then its end is certain, if not near.
	var file *os.PathError
	var late <-chan time.Time
	if !errors.As(err, &file) || !strings.HasPrefix(file.Path, fmt.Sprintf("/proc/%d/", c.init.child.pid)) {
		if errdefs.IsInvalidArgument(err) && !errors.Is(err, unix.ESRCH) { // else its own child has been killed
			return err
		}
		late = time.After(dyingTime)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.init.child.exited:
		return errEnded
	case <-late:
		return err
	}
}

// endExecs ends what has been started beside the first process, once that has
// exited; the exits of all come before its own. It tells whether there were any.
func (c *container) endExecs() (any bool) {
	c.mu.Lock()
	c.ended = true
	execs := slices.Collect(maps.Values(c.execs))
	c.mu.Unlock()
	c.end(errEnded)
	for _, p := range execs {
		<-p.startSettled()
		if phase, _ := p.state(); phase != running {
			continue
		}
		_ = p.kill(unix.SIGKILL) // gone already, or will be
		<-p.done
		any = true
	}
	return any
}

// followMemoryLimit tells the processes of the container what its limit is now.
func (c *container) followMemoryLimit() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit, err := c.cgroup.MemoryLimit()
	if err != nil {
		return err
	}
	for _, p := range append(slices.Collect(maps.Values(c.execs)), c.init) {
		p.mu.Lock()
		if p.child != nil {
			p.child.memory.Set(limit)
		}
		p.mu.Unlock()
	}
	return nil
}

// process finds a process of the container; an empty id is the first one's.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[execID]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("container %q: exec %q: %w", c.id, execID, errdefs.ErrNotFound)
}

// pause stops the guests where they are.
func (c *container) pause() error {
	p := c.init
	if err := p.become(pausing); err != nil {
		return fmt.Errorf("pause %s: %w", c.id, err)
	}
	if err := c.cgroup.Freeze(); err != nil {
		return errors.Join(err, p.become(running))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.phase.to(paused); err != nil { // it has ended meanwhile
		return errors.Join(fmt.Errorf("pause %s: %w", c.id, err), c.cgroup.Thaw())
	}
	c.host.outbox.send(c.alive, &eventstypes.TaskPaused{ContainerID: c.id})
	return nil
}

// resume lets the guests go on.
func (c *container) resume() error {
	p := c.init
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != paused {
		return fmt.Errorf("resume %s: it is not paused: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if err := c.cgroup.Thaw(); err != nil {
		return err
	}
	c.host.outbox.send(c.alive, &eventstypes.TaskResumed{ContainerID: c.id})
	return p.phase.to(running)
}

// killAll ends every process of the container for the given signal.
func (c *container) killAll(sig unix.Signal) error {
	c.mu.Lock()
	execs := slices.Collect(maps.Values(c.execs))
	c.mu.Unlock()
	for _, p := range execs {
		// One that has not been started, or is gone, needs none.
		if err := p.kill(sig); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			return err
		}
	}
	return c.init.kill(sig)
}

// removeExec removes an exec that has exited, or was never started.
func (c *container) removeExec(ctx context.Context, p *process) (exitStatus, error) {
	if err := p.claimRemoval(); err != nil {
		return exitStatus{}, err
	}
	c.mu.Lock()
	delete(c.execs, p.execID)
	c.mu.Unlock()
	return p.exit, telemetry.Stage(ctx, telemetry.StdioClose, func(context.Context) error { return p.release() })
}

// remove undoes newContainer, once the process has exited; one that was never
// started is killed first. It may be called again when it failed.
func (c *container) remove(ctx context.Context) (exitStatus, error) {
	p := c.init
	if phase, _ := p.state(); phase == created {
		if err := p.kill(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return exitStatus{}, err
		}
		if _, err := p.wait(ctx); err != nil {
			return exitStatus{}, err
		}
	}
	if err := p.claimRemoval(); err != nil {
		return exitStatus{}, err
	}
	err := c.tearDown(context.WithoutCancel(ctx))
	next := deleted
	if err != nil {
		next = stopped
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit, errors.Join(err, p.phase.to(next))
}

// release frees what the shim holds of the processes.
func (c *container) release() error {
	var errs []error
	c.mu.Lock()
	for id, p := range c.execs {
		errs = append(errs, p.release())
		delete(c.execs, id)
	}
	c.mu.Unlock()
	return errors.Join(append(errs, c.init.release())...)
}

// unmount removes every mount at path, and those below.
func unmount(path string) error {
	for {
		switch err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); {
		case err == nil: // there may be another one below it
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			// It has mounts of its own, say. To find them is to read all of the machine's.
			return mount.UnmountRecursive(path, unix.UMOUNT_NOFOLLOW)
		}
	}
}

// tearDownTimeout bounds a removal; containerd gives up on it after a while.
const tearDownTimeout = 10 * time.Second

// tearDown removes what newContainer made, as far as it got, and the execs that
// are left. No process runs, or will within moments.
func (c *container) tearDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tearDownTimeout)
	defer cancel()
	var errs []error
	if c.init != nil {
		errs = append(errs, telemetry.Stage(ctx, telemetry.StdioClose, func(context.Context) error { return c.release() }))
	}
	// Neither has to do with the other, and both wait for the kernel.
	var cgroupGone chan error
	if c.cgroup != nil {
		cgroupGone = make(chan error, 1)
		go func() {
			cgroupGone <- telemetry.Stage(ctx, telemetry.CgroupDestroy, func(context.Context) error { return c.cgroup.Destroy() })
		}()
	}
	if c.mounted {
		errs = append(errs, telemetry.Stage(ctx, telemetry.RootfsUnmount, func(context.Context) error {
			if err := unmount(c.bundle.mountpoint()); err != nil {
				return fmt.Errorf("unmount root file system: %w", err)
			}
			c.mounted = false
			return nil
		}))
	}
	if cgroupGone != nil {
		errs = append(errs, <-cgroupGone)
	}
	c.poststop(ctx)
	c.end(nil)
	return errors.Join(errs...)
}
