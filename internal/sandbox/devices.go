//go:build !nowalls

package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Devices are those of every /dev.
var Devices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
}

// deviceTypes are the letters of a specification's devices.
var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

// A node is a device of a specification, as the host knows it.
type node struct {
	mode     uint32 // with the type
	number   int
	uid, gid int
}

func newNode(d specs.LinuxDevice, ids *IDMappings) (n node, err error) {
	kind, ok := deviceTypes[d.Type]
	if !ok {
		return n, fmt.Errorf("type %q: unknown", d.Type)
	}
	if kind != unix.S_IFIFO {
		n.number = int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))
	}
	mode, owner := uint32(0o666), specs.User{}
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	if d.UID != nil {
		owner.UID = *d.UID
	}
	if d.GID != nil {
		owner.GID = *d.GID
	}
	if owner, err = ids.User(owner); err != nil {
		return n, err
	}
	n.mode, n.uid, n.gid = kind|mode, int(owner.UID), int(owner.GID)
	return n, nil
}

// is tells whether st is of the same device.
func (n node) is(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == n.mode&unix.S_IFMT && st.Rdev == uint64(n.number)
}

// make makes n in a directory that nobody else can change.
func (n node) make(dir int, name string) error {
	if err := unix.Mknodat(dir, name, n.mode, n.number); err != nil {
		return err
	}
	if err := unix.Fchownat(dir, name, n.uid, n.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(dir, name, n.mode&0o7777, 0) // whatever the umask
}

// clone is a mount of n alone, attached nowhere. For a moment its file system is
// at the path over: the kernel clones only what is attached.
func (n node) clone(over string) (_ int, err error) {
	fs, err := newFilesystem("tmpfs", "device", []string{"mode=0755", "size=4k"}, over)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	const name = "device"
	if err := n.make(fs, name); err != nil {
		return -1, err
	}
	if err := unix.MoveMount(fs, "", unix.AT_FDCWD, over, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, unix.Unmount(over, unix.MNT_DETACH)) }()
	fd, err := unix.OpenTree(fs, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// makeDevice makes n at path of the root file system. What can be done with it is up to
// the cgroup and to its mode.
//
// It is made in a tmpfs of this container's. Elsewhere devices are closed
// (nodev), and a volume's other users could put a link in place of what is to be
// changed: there n is mounted.
func (w *Walls) makeDevice(path string, n node) error {
	parent, name := filepath.Split(cleanPath(path))
	up, _, err := makeTarget(w.tree, parent, true)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	var st unix.Stat_t
	if err := unix.Fstat(up, &st); err != nil {
		return err
	}
	if w.ownTmpfs(st.Dev) {
		err := n.make(up, name)
		if errors.Is(err, unix.EEXIST) && unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && n.is(&st) {
			return nil // given twice
		}
		return err
	}
	if err := unix.Mknodat(up, name, unix.S_IFREG|0o644, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	} else if err != nil {
		if err := unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		empty := st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 // as this makes, and a volume keeps
		if !empty && !n.is(&st) {
			return unix.EEXIST
		}
	}
	target, err := unix.Openat(up, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	mount, err := n.clone(w.cfg.Base)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return moveMount(mount, target)
}

// ownTmpfs tells whether dev is a tmpfs that was made for this container.
func (w *Walls) ownTmpfs(dev uint64) bool {
	return slices.ContainsFunc(w.sources, func(s *source) bool { return s != nil && s.tmpfs && s.dev == dev })
}

// makeDevices makes the devices that the specification asks for, and those of
// every /dev: what is there in the image stays, and so does a /dev that is bound.
func (w *Walls) makeDevices() error {
	given := map[string]bool{}
	for _, d := range w.cfg.Devices {
		given[cleanPath(d.Path)] = true
		n, err := newNode(d, w.cfg.IDs)
		if err == nil {
			err = w.makeDevice(d.Path, n)
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	for i, m := range w.cfg.Mounts {
		if s := w.sources[i]; s != nil && cleanPath(m.Destination) == "/dev" && !s.tmpfs {
			return nil
		}
	}
	for _, d := range Devices {
		if given[d.Path] {
			continue
		}
		n, err := newNode(d, w.cfg.IDs)
		if err == nil {
			err = w.makeDevice(d.Path, n)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return nil
}
