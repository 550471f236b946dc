package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

var defaultSocketDir = filepath.Join(defaults.DefaultStateDir, "s")

// manager is what containerd runs this binary for, other than to be the shim.
type manager struct{}

// Name implements [shim.Shim].
func (manager) Name() string { return RuntimeName }

// Start implements [shim.Shim]: it opens the socket, re-executes this binary as
// the shim that serves it, and answers with the address. A shim that serves the
// socket already is the answer as it is.
func (manager) Start(ctx context.Context, params *bootapi.BootstrapParams) (_ *bootapi.BootstrapResult, err error) {
	began := time.Now()
	dir := params.GetSocketDir()
	if dir == "" {
		dir = defaultSocketDir
	}
	address, err := shim.CreateSocketAddress(ctx, dir, params.GetContainerdGrpcAddress(), params.GetInstanceID(), false)
	if err != nil {
		return nil, err
	}
	result := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}
	// Says that every mount is left to containerd, which would otherwise run this
	// binary once more, with -info, to find out.
	if err := result.AddExtension(&types.MountCapabilities{}); err != nil {
		return nil, err
	}
	listener, err := listen(address)
	if err != nil {
		return nil, err
	}
	if listener == nil {
		return result, nil
	}
	defer func() {
		if err != nil {
			_ = shim.RemoveSocket(address) // the error at hand says more
		}
	}()
	defer listener.Close()
	listener.SetUnlinkOnClose(false) // it is the shim's now
	socket, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()

	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", "-namespace", namespace, "-id", params.GetInstanceID(), "-address", params.GetContainerdGrpcAddress())
	cmd.Args[0] = runtimeBinary
	if params.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG {
		cmd.Args = append(cmd.Args, "-debug")
	}
	if cmd.Env = os.Environ(); telemetry.Enabled() {
		cmd.Env = append(cmd.Env, telemetry.Boot(began)...)
	}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the shim: %w", err)
	}
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill() // the error at hand says more
		_ = cmd.Wait()
		return nil, err
	}
	return result, nil
}

// listen opens the socket of a shim; it is nil when one serves there already.
func listen(address string) (*net.UnixListener, error) {
	l, err := shim.NewSocket(address)
	if err == nil || !shim.SocketEaddrinuse(err) {
		return l, err
	}
	if shim.CanConnect(address) {
		return nil, nil
	}
	// Left by a shim that was killed.
	if err := shim.RemoveSocket(address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return shim.NewSocket(address)
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
	if serving(ctx, id) {
		// containerd also runs this after every regular end of a shim. By now
		// there may be a new container of the same id, in a bundle of the same
		// path: it is not to be touched.
		return stopStatus(ctx, path), nil
	}
	if err := removeCgroup(path, id); err != nil {
		log.G(ctx).WithError(err).Warn("remove cgroup")
	}
	if err := mount.UnmountRecursive(filepath.Join(path, "rootfs"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.G(ctx).WithError(err).Warn("unmount root file system")
	}
	if !serving(ctx, id) {
		if socket, err := socketAddress(ctx, id); err == nil {
			_ = shim.RemoveSocket(socket) // there is none, mostly
		}
	}
	return stopStatus(ctx, path), nil
}

// serving tells whether there is a shim for the container id.
func serving(ctx context.Context, id string) bool {
	socket, err := socketAddress(ctx, id)
	return err == nil && shim.CanConnect(socket)
}

// socketAddress is the address that Start chose for the shim of container id, for
// a process in the same bundle.
func socketAddress(ctx context.Context, id string) (string, error) {
	dir, err := os.Readlink("s") // left by package shim where it is not the default
	if err != nil {
		dir = defaultSocketDir
	}
	return shim.CreateSocketAddress(ctx, dir, commandLine("address"), id, false)
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
	opts, err := runc.ReadOptions(path)
	if err != nil {
		return err
	}
	c, err := b.cgroup(id, opts.GetSystemdCgroup())
	if err != nil {
		return err
	}
	return errors.Join(c.Adopt(), c.Destroy())
}

// readPid is the pid of the container's first process, or 0.
func readPid(bundle string) int {
	data, err := os.ReadFile(filepath.Join(bundle, pidFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// Info implements [shim.Shim].
func (manager) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	return &types.RuntimeInfo{Name: RuntimeName, Version: &types.RuntimeVersion{Version: Version()}}, nil
}
