package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// tellAgent hands the listener of a seccomp profile to the agent that the profile
// names, with what the specification has a runtime say of the process.
//
// See https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#containerprocessstate.
func (p *process) tellAgent(ctx context.Context, profile *specs.LinuxSeccomp, pid int, listener *os.File) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("seccomp: listenerPath %s: %w: %w", profile.ListenerPath, err, errdefs.ErrInvalidArgument)
		}
	}()
	status := specs.StateCreating
	if p.execID != "" {
		status = specs.StateRunning
	}
	state, err := json.Marshal(specs.ContainerProcessState{
		Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: pid, Metadata: profile.ListenerMetadata,
		State: p.container.bundle.state(p.container.id, status, pid),
	})
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", profile.ListenerPath)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	n, rights, err := conn.(*net.UnixConn).WriteMsgUnix(state, unix.UnixRights(int(listener.Fd())), nil)
	if err == nil && (n < len(state) || rights == 0) {
		err = errors.New("the state was written in part")
	}
	return err
}
