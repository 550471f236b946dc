package sandbox

import (
	"fmt"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container's user namespace is not entered. The kernel lets no process with
// several threads into one, and a capability that the process had there would
// count outside too. What it is there for holds all the same: to the host the
// process is the user that its own is mapped to, without any capability; the file
// systems that are made for it are that user's; and what it is given of the
// host's files is mapped where the specification says so.

// HostUser is what User is to the host. It is an error when the mappings leave
// that user out.
func (c Config) HostUser() (specs.User, error) {
	if len(c.UIDMappings)+len(c.GIDMappings) == 0 {
		return c.User, nil
	}
	return hostUser(c.User, c.UIDMappings, c.GIDMappings)
}

func hostUser(u specs.User, uids, gids []specs.LinuxIDMapping) (specs.User, error) {
	var err error
	if u.UID, err = hostID(u.UID, uids); err != nil {
		return u, fmt.Errorf("user: %w", err)
	}
	if u.GID, err = hostID(u.GID, gids); err != nil {
		return u, fmt.Errorf("group: %w", err)
	}
	groups := make([]uint32, len(u.AdditionalGids))
	for i, g := range u.AdditionalGids {
		if groups[i], err = hostID(g, gids); err != nil {
			return u, fmt.Errorf("additional group: %w", err)
		}
	}
	u.AdditionalGids = groups
	return u, nil
}

func hostID(id uint32, mappings []specs.LinuxIDMapping) (uint32, error) {
	for _, m := range mappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), nil
		}
	}
	return 0, fmt.Errorf("%d is not mapped in the container's user namespace", id)
}

// userNamespaces are the ones made to map mounts with, by their mappings. They
// have no process in them.
type userNamespaces map[string]*os.File

func (n userNamespaces) close() {
	for _, f := range n {
		f.Close()
	}
}

// get is a user namespace with the given mappings. It must be called on a thread
// that lives until it returns: that is the tracer of a process.
func (n userNamespaces) get(uids, gids []specs.LinuxIDMapping) (_ *os.File, err error) {
	key := fmt.Sprint(uids, gids)
	if f := n[key]; f != nil {
		return f, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("user namespace for id mappings: %w", err)
		}
	}()
	// The kernel stops the process at its exec, before its first instruction.
	p, err := os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER, UidMappings: idMap(uids), GidMappings: idMap(gids), GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: unix.SIGKILL,
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait() // whoever reaps this process's children may have been first
	}()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	if err != nil {
		return nil, err
	}
	n[key] = f
	return f, nil
}

func idMap(mappings []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	m := make([]syscall.SysProcIDMap, len(mappings))
	for i, x := range mappings {
		m[i] = syscall.SysProcIDMap{ContainerID: int(x.ContainerID), HostID: int(x.HostID), Size: int(x.Size)}
	}
	return m
}
