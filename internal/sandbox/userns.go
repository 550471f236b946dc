package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// IDMappings say which users and groups of the host those of a container are.
// They are a user namespace's, which no process of a wasm container enters: a
// thread of a Go program cannot, and the guest needs none of what it would have
// there. A nil *IDMappings maps each id to itself.
type IDMappings struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// maxMappings is the kernel's UID_GID_MAP_MAX_EXTENTS.
const maxMappings = 340

// NewIDMappings finds the mappings of a specification's user namespace; nil when
// it has none. Those given count; without any, those of the namespace that is
// named by path.
func NewIDMappings(namespaces []specs.LinuxNamespace, uids, gids []specs.LinuxIDMapping) (*IDMappings, error) {
	var found *IDMappings
	for _, n := range namespaces {
		if n.Type != specs.UserNamespace {
			continue
		}
		if found != nil {
			return nil, errors.New("user namespace: given twice")
		}
		found = &IDMappings{uids, gids}
		if n.Path != "" && len(uids)+len(gids) == 0 {
			var err error
			if found, err = mappingsOf(n.Path); err != nil {
				return nil, fmt.Errorf("user namespace %s: %w", n.Path, err)
			}
		}
		if len(found.UIDs) > maxMappings || len(found.GIDs) > maxMappings {
			return nil, fmt.Errorf("user namespace: more than %d mappings of users or of groups", maxMappings)
		}
		if len(found.UIDs) == 0 || len(found.GIDs) == 0 {
			return nil, errors.New("user namespace: without mappings of users and of groups")
		}
		if _, err := found.User(specs.User{}); err != nil {
			return nil, err
		}
	}
	if found == nil && len(uids)+len(gids) > 0 {
		return nil, errors.New("mappings of users or groups without a user namespace")
	}
	return found, nil
}

// mappingsOf reads the mappings of an existing user namespace. The kernel tells
// them of a process only, so one that is in it is looked for: a namespace that
// has none is an error.
func mappingsOf(path string) (*IDMappings, error) {
	want, err := os.Stat(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		if have, err := os.Stat(p + "/ns/user"); err != nil || !os.SameFile(want, have) {
			continue
		}
		uids, err := readMappings(p + "/uid_map")
		if err != nil {
			continue // it has just ended; there may be others
		}
		gids, err := readMappings(p + "/gid_map")
		if err != nil {
			continue
		}
		return &IDMappings{uids, gids}, nil
	}
	return nil, errors.New("no process is in it to tell its mappings, and linux.uidMappings and linux.gidMappings are not given")
}

func readMappings(path string) ([]specs.LinuxIDMapping, error) {
	lines, err := user.ParseIDMapFile(path)
	if err != nil {
		return nil, err
	}
	mappings := make([]specs.LinuxIDMapping, len(lines))
	for i, l := range lines {
		mappings[i] = specs.LinuxIDMapping{ContainerID: uint32(l.ID), HostID: uint32(l.ParentID), Size: uint32(l.Count)}
	}
	return mappings, nil
}

// User is a user of the container as the host knows it.
func (m *IDMappings) User(u specs.User) (specs.User, error) {
	if m == nil {
		return u, nil
	}
	var ok bool
	mapped := u
	if mapped.UID, ok = toHost(m.UIDs, u.UID); !ok {
		return u, fmt.Errorf("uid %d: not mapped in the user namespace", u.UID)
	}
	if mapped.GID, ok = toHost(m.GIDs, u.GID); !ok {
		return u, fmt.Errorf("gid %d: not mapped in the user namespace", u.GID)
	}
	mapped.AdditionalGids = nil
	for _, g := range u.AdditionalGids {
		host, ok := toHost(m.GIDs, g)
		if !ok {
			return u, fmt.Errorf("additional gid %d: not mapped in the user namespace", g)
		}
		mapped.AdditionalGids = append(mapped.AdditionalGids, host)
	}
	return mapped, nil
}

func toHost(mappings []specs.LinuxIDMapping, id uint32) (host uint32, ok bool) {
	for _, m := range mappings {
		offset := uint64(id) - uint64(m.ContainerID)
		if id >= m.ContainerID && offset < uint64(m.Size) && uint64(m.HostID)+offset < 1<<32-1 {
			return m.HostID + uint32(offset), true
		}
	}
	return 0, false
}

// makeFilesAs has what the calling thread makes, files and file systems, belong
// to the root of the container, until back is called. The thread keeps its
// capabilities.
func (m *IDMappings) makeFilesAs() (back func(), err error) {
	if m == nil {
		return func() {}, nil
	}
	root, err := m.User(specs.User{})
	if err != nil {
		return nil, err
	}
	uid, err := unix.SetfsuidRetUid(-1)
	if err != nil {
		return nil, err
	}
	gid, err := unix.SetfsgidRetGid(-1)
	if err != nil {
		return nil, err
	}
	// Errors of these calls, the kernel does not tell.
	_ = unix.Setfsgid(int(root.GID))
	_ = unix.Setfsuid(int(root.UID))
	back = func() {
		_ = unix.Setfsuid(uid) // brings back the capabilities as well
		_ = unix.Setfsgid(gid)
	}
	// That took away, from the effective set, what makes root free with files.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		back()
		return nil, fmt.Errorf("capabilities: %w", err)
	}
	for i := range sets {
		sets[i].Effective = sets[i].Permitted
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		back()
		return nil, fmt.Errorf("capabilities: %w", err)
	}
	return back, nil
}
