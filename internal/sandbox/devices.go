package sandbox

import (
	"errors"
	"fmt"

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
