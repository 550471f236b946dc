package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runcmanager "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	runcshim "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/errdefs"
	"github.com/containerd/go-runc"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const (
	// runcFile of the bundle is written for every Linux container.
	runcFile = "runtime"
	// runcTime is what a removal by runc may take of the 5 s that containerd gives.
	runcTime = 2500 * time.Millisecond
)

// manager is what containerd runs this binary for, other than to be the shim.
type manager struct{}

// Name implements [shim.Shim].
func (manager) Name() string { return RuntimeName }

// Start implements [shim.Shim]. A `start` is not left to package shim: see [starter.run].
func (manager) Start(context.Context, *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	return nil, errdefs.ErrNotImplemented
}

// openSocket opens the socket of this process, and has the answer to `start`. A shim that
// serves the socket already, be it for another container of the group, is the answer as it
// is: then there is no socket of ours. The caller calls unlock when the answer is given,
// or the socket gone again: meanwhile nobody else may take it for that of a shim.
func openSocket(ctx context.Context, params *bootapi.BootstrapParams) (_ *bootapi.BootstrapResult, _ *ownSocket, unlock func(), err error) {
	dir := params.GetSocketDir()
	if dir == "" {
		dir = defaultSocketDir
	}
	group := groupOf(".", params.GetInstanceID())
	address, err := shim.CreateSocketAddress(ctx, dir, params.GetContainerdGrpcAddress(), group, false)
	if err != nil {
		return nil, nil, nil, err
	}
	result := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}
	// Says that every mount is left to containerd, which would otherwise run this
	// binary once more, with -info, to find out.
	if err := result.AddExtension(&types.MountCapabilities{}); err != nil {
		return nil, nil, nil, err
	}
	path := socketPath(address)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, nil, fmt.Errorf("socket: %w", err)
	}
	if unlock, err = lockSockets(path); err != nil {
		return nil, nil, nil, err
	}
	listener, err := listen(address)
	var socket *ownSocket
	if listener != nil {
		socket, err = newOwnSocket(listener)
	}
	if err != nil {
		unlock()
		return nil, nil, nil, err
	}
	return result, socket, unlock, nil
}

// prepare makes this process what a shim with the given parameters is.
func prepare(params *bootapi.BootstrapParams) error {
	if err := shim.AdjustOOMScore(os.Getpid()); err != nil {
		return err
	}
	h, _ := readHostFile() // Create says what is wrong with it
	if cgroup := shimCgroup(h, params); cgroup != "" {
		return joinCgroup(cgroup, os.Getpid())
	}
	return nil
}

// shimCgroup is the cgroup that the shim is to be in. What is wrong with the
// options is an error of Create, which has a better way to say it.
func shimCgroup(h hostFile, params *bootapi.BootstrapParams) string {
	if h.options == nil {
		return ""
	}
	for _, e := range params.GetExtensions() {
		_, _ = override(h.options, e.GetValue()) // there may be others than options
	}
	return h.options.ShimCgroup
}

// joinCgroup moves the shim into a cgroup that is there already, as containerd's
// own shim does.
func joinCgroup(path string, pid int) (err error) {
	if cgroups.Mode() == cgroups.Unified {
		var c *cgroup2.Manager
		if c, err = cgroup2.Load(path); err == nil {
			err = c.AddProc(uint64(pid))
		}
	} else {
		var c cgroup1.Cgroup
		if c, err = cgroup1.Load(cgroup1.StaticPath(path)); err == nil {
			err = c.AddProc(uint64(pid))
		}
	}
	if err != nil {
		return fmt.Errorf("cgroup %s of the shim: %w", path, err)
	}
	return nil
}

// Stop implements [shim.Shim], the delete of a container whose shim is gone: it
// kills what is left, unmounts, removes the cgroup, and says how the container
// ended. It may be called again, and finds what is left of a bundle enough.
func (manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return shim.StopStatus{}, err
	}
	path := filepath.Join(filepath.Dir(cwd), id)
	socket, err := socketAddress(ctx, path, id)
	if err != nil {
		return shim.StopStatus{}, err
	}
	ctx = newIdentity(id, nil).in(ctx)
	if inCharge(ctx, socket, path, id) {
		// containerd also runs this after every regular end of a container. By now
		// there may be a new one of the same id, in a bundle of the same path: it
		// is not to be touched.
		return stopStatus(ctx, path), nil
	}
	if b, err := readBundle(path); err == nil {
		ctx = newIdentity(id, b.annotations()).in(ctx)
	}
	if _, err := os.Lstat(filepath.Join(path, runcFile)); err == nil {
		stopLinux(ctx, id)
	}
	if err := removeCgroup(path, id); err != nil {
		log.G(ctx).WithError(err).Warn("remove cgroup")
	}
	if err := mount.UnmountRecursive(filepath.Join(path, "rootfs"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.G(ctx).WithError(err).Warn("unmount root file system")
	}
	stopHooks(ctx, path, id)
	_ = removeDeadSocket(socket) // there is none, mostly
	tidyCompiler(ctx, path)
	return stopStatus(ctx, path), nil
}

// tidyCompiler removes what a shim that was killed may have left of a compilation. What it
// cannot, the next one to compile does.
func tidyCompiler(ctx context.Context, bundle string) {
	state := stateDir(bundle)
	if err := newCompiler(nil, state).tidy(); err != nil {
		log.G(ctx).WithError(err).Warn("clean up after compilations")
	}
}

// stopLinux has runc remove what it knows of a Linux container. Where that fails,
// as when runc itself is gone, the cgroup still has all its processes.
func stopLinux(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, runcTime)
	defer cancel()
	runc.Monitor = reaper.Default // package shim reaps all children
	if _, err := runcmanager.NewShimManager(RuntimeName).Stop(ctx, id); err != nil {
		log.G(ctx).WithError(err).Warn("remove runc's container")
	}
}

// commandLine is the value of a flag. They belong to package shim, which hands
// these on to nobody.
func commandLine(name string) string {
	if f := flag.Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

// stopStatus is how a container ended: as its shim recorded, or killed, now.
func stopStatus(ctx context.Context, bundle string) shim.StopStatus {
	e, err := readExitStatus(bundle)
	if err == nil {
		return shim.StopStatus{Pid: e.Pid, ExitStatus: e.Status, ExitedAt: e.At}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		log.G(ctx).WithError(err).Warn("read exit status")
	}
	return shim.StopStatus{Pid: readPid(bundle), ExitStatus: 128 + int(unix.SIGKILL), ExitedAt: time.Now()}
}

func removeCgroup(path, id string) error {
	b, err := readBundle(path)
	if err != nil {
		return fmt.Errorf("%s: %w", configFile, err)
	}
	opts, err := runcshim.ReadOptions(path)
	if err != nil {
		return err
	}
	c, err := b.cgroup(id, opts.GetSystemdCgroup())
	if err != nil {
		return err
	}
	// Of a Create that got no further, no process is left: it died with its shim.
	return errors.Join(c.Adopt(hasProcess(path)), c.Destroy())
}

// hasProcess tells whether a process was ever made in the bundle, whoever did.
func hasProcess(bundle string) bool {
	for _, name := range []string{pidFile, runcFile} {
		if _, err := os.Lstat(filepath.Join(bundle, name)); err == nil {
			return true
		}
	}
	return false
}

// readPid is the pid of the container's first process, or 0.
func readPid(bundle string) int {
	data, err := os.ReadFile(filepath.Join(bundle, pidFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 32)
	if err != nil || pid < 0 {
		return 0
	}
	return int(pid)
}
