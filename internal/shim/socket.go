package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

const (
	// stateTime is how long a shim may take to answer before it counts as dead;
	// containerd gives the whole of `delete` 5 s.
	stateTime = 2 * time.Second
)

var defaultSocketDir = filepath.Join(defaults.DefaultStateDir, "s")

// groupAnnotations name what containers have in common that share a shim. The
// first one that is there counts, as for containerd's own shim.
var groupAnnotations = []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"}

// groupOf is the group of the container id, whose bundle is given. A container
// without one, or whose config.json cannot be read, is a group of its own: Create
// says what is wrong with it.
func groupOf(bundle, id string) string {
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	data, err := readConfig(bundle)
	if err != nil || json.Unmarshal(data, &spec) != nil {
		return id
	}
	for _, a := range groupAnnotations {
		if group := spec.Annotations[a]; group != "" {
			return group
		}
	}
	return id
}

// socketAddress is the address of the shim of container id, for `delete`: as it
// was told to containerd, which keeps it in the bundle, else as `start` chooses it.
func socketAddress(ctx context.Context, bundle, id string) (string, error) {
	var result struct{ Address string }
	data, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json"))
	if err == nil && json.Unmarshal(data, &result) == nil && result.Address != "" {
		return result.Address, nil
	}
	if data, err := os.ReadFile(filepath.Join(bundle, addressFile)); err == nil && len(data) > 0 {
		return string(data), nil
	}
	return shim.CreateSocketAddress(ctx, defaultSocketDir, commandLine("address"), groupOf(bundle, id), false)
}

func socketPath(address string) string { return strings.TrimPrefix(address, "unix://") }

// lockSockets keeps every other `start`, `delete` and ending shim off the sockets
// beside path, until unlock is called or the process ends: of two that find a dead
// socket, one would remove the live one that the other has put there.
func lockSockets(path string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("lock sockets: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock sockets: %w", &os.PathError{Op: "flock", Path: dir.Name(), Err: err})
	}
	return func() { dir.Close() }, nil
}

// listen opens the socket of a shim; it is nil when one serves there already. The caller
// has the lock on sockets.
func listen(address string) (*net.UnixListener, error) {
	path := socketPath(address)
	l, err := shim.NewSocket(address)
	if err == nil || !shim.SocketEaddrinuse(err) {
		return l, err
	}
	if served(path) {
		return nil, nil
	}
	// Left by a shim, or by a `start`, that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return shim.NewSocket(address)
}

// removeDeadSocket removes a socket that nobody listens to.
func removeDeadSocket(address string) error {
	path := socketPath(address)
	unlock, err := lockSockets(path)
	if err != nil {
		return err
	}
	defer unlock()
	if served(path) {
		return nil
	}
	return os.Remove(path)
}

// served tells whether anybody listens to the socket at path. Only the kernel's
// word that nobody does counts: a dial with a time limit fails on a busy machine.
func served(path string) bool {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	if err == nil {
		conn.Close()
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
}

// An ownSocket is the one that this process serves.
type ownSocket struct {
	listener *net.UnixListener
	path     string
	file     os.FileInfo
}

// newOwnSocket makes l, which it takes, the socket that this process serves.
func newOwnSocket(l *net.UnixListener) (*ownSocket, error) {
	path := l.Addr().String()
	file, err := os.Lstat(path)
	if err != nil {
		l.Close() // and with it what there may be of it
		return nil, fmt.Errorf("socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	return &ownSocket{l, path, file}, nil
}

// remove removes the socket, unless a later shim's is in its place.
func (s *ownSocket) remove() error {
	unlock, err := lockSockets(s.path)
	if err != nil {
		return err
	}
	defer unlock()
	return s.removeLocked()
}

// removeLocked is remove, of a caller that has the lock on sockets.
func (s *ownSocket) removeLocked() error {
	file, err := os.Lstat(s.path)
	// The number of a removed file may be given to the next one.
	if err == nil && os.SameFile(file, s.file) && file.ModTime().Equal(s.file.ModTime()) {
		err = os.Remove(s.path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// inCharge tells whether a shim serves at address that sees to the container id
// itself. It does, too, when it knows nothing of it and no process was ever made
// in the bundle: Create may be about to. One that does not answer does not.
func inCharge(ctx context.Context, address, bundle, id string) bool {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketPath(address)})
	if err != nil {
		return false
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	_, err = taskapi.NewTTRPCTaskClient(client).State(ctx, &taskapi.StateRequest{ID: id})
	switch {
	case ctx.Err() != nil || errors.Is(err, ttrpc.ErrClosed):
		return false
	case errdefs.IsNotFound(errgrpc.ToNative(err)):
		_, err := os.Lstat(filepath.Join(bundle, pidFile))
		return errors.Is(err, fs.ErrNotExist)
	}
	return true
}
