package shim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/cgroup"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/seccomp"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// runDir has the locks of compilers. It is not on a disk, and not containerd's: a full
// disk or a cache that cannot be used is no reason not to keep to the limits.
const runDir = "/run/" + runtimeBinary

// A compiler compiles modules, each in a process of its own. All those processes of a node,
// for whichever shim they work, are in one cgroup, and so many at most.
//
// Who compiles has a lock on one byte of a file of the node, and for as long as it starts a
// process in the cgroup or removes that, on the first one. The kernel ends them with the
// process that has them: so a shim that is killed is out of nobody's way. What it leaves of
// the cgroup the next one takes over, or removes.
type compiler struct {
	stage *sandbox.Stage
	name  string // of the lock and of the cgroup
}

// newCompiler is the one of the node whose [stateDir] is given.
func newCompiler(stage *sandbox.Stage, state string) *compiler {
	return &compiler{stage, fmt.Sprintf("wazero-compile-%x", sha256.Sum256([]byte(state)))[:len("wazero-compile-")+8]}
}

// compileOOMScore has the kernel end a compile process before anything else, where
// the machine itself runs out of memory.
var compileOOMScore = 1000

// compileLimits are the kernel's, for a process that does not keep to its bounds.
// What a Go program maps is more than it uses, and in pieces of 64 MiB; one that may not
// map another ends without a word.
func compileLimits(b instance.CompileBounds) []specs.POSIXRlimit {
	limit := func(resource string, n uint64) specs.POSIXRlimit {
		return specs.POSIXRlimit{Type: resource, Soft: n, Hard: n}
	}
	return []specs.POSIXRlimit{
		limit("RLIMIT_DATA", 2*b.Memory+256<<20), limit("RLIMIT_FSIZE", b.Memory),
		limit("RLIMIT_CPU", uint64(b.CPU/time.Second)+10), limit("RLIMIT_CORE", 0),
	}
}

// compiledFiles is how many files and directories a compilation may make, the directory
// they are in among them.
const compiledFiles = 32

// of is the [module.Compiler] whose processes have the given labels.
func (c *compiler) of(labels sandbox.Labels) module.Compiler {
	return func(ctx context.Context, f *os.File) (*os.File, error) { return c.compile(ctx, labels, f) }
}

// compile compiles f in a process of its own, without a root file system, a network or a
// user, that ends with the compilation. The directory with the result is in memory, and
// gone when it is closed.
func (c *compiler) compile(ctx context.Context, labels sandbox.Labels, f *os.File) (_ *os.File, err error) {
	h, err := readHostFile()
	if err != nil {
		return nil, err
	}
	limits, err := h.compile.limits()
	if err != nil {
		return nil, err
	}
	group, err := cgroup.NewShared(c.name, limits.resources())
	if err != nil {
		return nil, err
	}
	locks, err := c.enter(ctx, limits.AtOnce)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := c.leave(locks, group); e != nil {
			log.G(ctx).WithError(e).Warn("clean up after a compilation")
		}
	}()
	dir, err := c.compileIn(ctx, locks, group, limits, labels, f)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if dir != nil {
			dir.Close()
		}
		return nil, err
	}
	return dir, nil
}

func (c *compiler) compileIn(ctx context.Context, locks *compileLocks, group *cgroup.Cgroup, limits compileLimit, labels sandbox.Labels, f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	bounds := instance.NewCompileBounds(info.Size(), limits.Memory)
	if limits.Time > 0 {
		bounds.CPU = limits.Time
	}
	ns, err := sandbox.NewNamespaces([]specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
	})
	if err != nil {
		return nil, err
	}
	rlimits := compileLimits(bounds)
	walls, err := sandbox.NewWalls(c.stage, sandbox.Config{
		Program: programName(instance.RoleCompile), Base: runDir, Namespaces: ns,
		User: specs.User{UID: module.CompilerUser, GID: module.CompilerUser}, Labels: labels,
		Rlimits: rlimits, OOMScoreAdj: &compileOOMScore,
	})
	if err != nil {
		return nil, err
	}
	defer walls.Close()
	filters, err := seccomp.ForCompiler()
	if err != nil {
		return nil, err
	}
	cfg := instance.Config{
		Umask: 0o022, Seccomp: filters, Rlimits: rlimits, Compile: bounds,
		MaxProcs: int(math.Ceil(limits.Processors)),
	}
	var p *child
	var kills uint64
	err = telemetry.Stage(ctx, telemetry.CompilerSpawn, func(spawning context.Context) error {
		if err := locks.take(spawning, 0); err != nil {
			return err
		}
		defer locks.release(0)
		err := group.Share()
		if err == nil {
			kills, err = group.OOMKills()
		}
		if err == nil {
			p, err = startChild(ctx, instance.RoleCompile, cfg, 0, walls, group, [3]*os.File{nil, nil, os.Stderr})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	defer p.destroy()
	defer context.AfterFunc(ctx, func() { _ = p.kill(unix.SIGKILL) })()
	if err := walls.Limit(p.pid); err != nil {
		return nil, err
	}
	if err := walls.Build(nil, nil); err != nil {
		return nil, err
	}
	dir, err := walls.AttachNew(bounds.Memory, compiledFiles)
	if err != nil {
		return nil, err
	}
	err = p.ask(instance.Message{Compile: true}, f)
	var said *instance.Error
	if err != nil && !errors.As(err, &said) {
		if n, e := group.OOMKills(); e == nil && n > kills {
			err = fmt.Errorf("compiling it took more memory than the %d MiB that compilations have on this node (compile.memory in %s): %w: %w",
				limits.Memory>>20, hostConfigPath(), err, errdefs.ErrResourceExhausted)
		}
	}
	return dir, err
}

// compileLocks is the file with the locks of one who compiles. Those that one process has
// of it by different descriptors exclude each other like those of different processes.
type compileLocks struct{ f *os.File }

func (c *compiler) locks() (*compileLocks, error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(runDir, c.name+".lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locks of compilers: %w", err)
	}
	return &compileLocks{f}, nil
}

// try takes the lock on n bytes from the given one on. It says whether it could be had.
func (l *compileLocks) try(from, n int64) (bool, error) {
	err := unix.FcntlFlock(l.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: from, Len: n})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", l.f.Name(), err)
	}
	return true, nil
}

// take waits for the lock on one byte.
func (l *compileLocks) take(ctx context.Context, which int64) error {
	return poll(ctx, func() (bool, error) { return l.try(which, 1) })
}

// poll calls try until it says that it has succeeded or failed, or ctx is done.
func poll(ctx context.Context, try func() (bool, error)) error {
	for {
		if ok, err := try(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for other compilations: %w", context.Cause(ctx))
		}
	}
}

func (l *compileLocks) release(which int64) {
	_ = unix.FcntlFlock(l.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: which, Len: 1}) // fails for no lock only
}

// enter waits until there are fewer compilations on the node than there may be.
func (c *compiler) enter(ctx context.Context, atOnce int) (*compileLocks, error) {
	l, err := c.locks()
	if err != nil {
		return nil, err
	}
	try := func() (bool, error) {
		for i := range int64(atOnce) {
			ok, err := l.try(1+i, 1)
			if err != nil {
				return false, err
			}
			if ok && l.removed() { // by the last one to leave
				l.f.Close()
				l, err = c.locks()
				return false, err
			}
			if ok {
				return true, nil
			}
		}
		return false, nil
	}
	ok, err := try()
	if err == nil && !ok {
		err = telemetry.Stage(ctx, telemetry.CompilerQueue, func(ctx context.Context) error { return poll(ctx, try) })
	}
	if err != nil {
		if l != nil {
			l.f.Close()
		}
		return nil, err
	}
	return l, nil
}

// removed tells whether others would not find the file any more.
func (l *compileLocks) removed() bool {
	var st unix.Stat_t
	return unix.Fstat(int(l.f.Fd()), &st) == nil && st.Nlink == 0
}

// leave removes the cgroup, and the file of the locks, when nobody compiles any more.
func (c *compiler) leave(l *compileLocks, group *cgroup.Cgroup) error {
	defer l.f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), tearDownTimeout)
	defer cancel()
	if err := l.take(ctx, 0); err != nil {
		return err
	}
	if last, err := l.try(1, maxAtOnce); !last || err != nil {
		return err
	}
	if err := group.Unshare(); err != nil {
		return err
	}
	if l.removed() {
		return nil
	}
	return os.Remove(l.f.Name())
}

// tidy removes what a shim that was killed may have left of the cgroup.
func (c *compiler) tidy() error {
	if _, err := os.Lstat(filepath.Join(runDir, c.name+".lock")); errors.Is(err, fs.ErrNotExist) {
		return nil // nobody has compiled
	}
	group, err := cgroup.NewShared(c.name, nil)
	if err != nil {
		return err
	}
	l, err := c.locks()
	if err != nil {
		return err
	}
	return c.leave(l, group)
}
