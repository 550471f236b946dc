package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// attributes are the mount options that belong to the mount, not to the file
// system: mount_setattr(2).
var attributes = map[string]struct{ set, clear uint64 }{
	"ro":          {set: unix.MOUNT_ATTR_RDONLY},
	"rw":          {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":      {set: unix.MOUNT_ATTR_NOSUID},
	"suid":        {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":       {set: unix.MOUNT_ATTR_NODEV},
	"dev":         {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":      {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":        {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":  {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":    {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":   {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	// The access time policy is a field, not a bit: it is cleared to be set.
	"relatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE,
}

// kernelFilesystems show or change the kernel's state. A wasm guest has no use
// for them, and /proc/self/mem would be a way out of the engine.
var kernelFilesystems = map[string]int64{
	"proc":    unix.PROC_SUPER_MAGIC,
	"sysfs":   unix.SYSFS_MAGIC,
	"cgroup":  unix.CGROUP_SUPER_MAGIC,
	"cgroup2": unix.CGROUP2_SUPER_MAGIC,
}

// unusedFilesystems are of no meaning to a WASI guest, which has neither
// terminals nor message queues; they are left out without an error, since every
// container engine's default specification has them.
var unusedFilesystems = map[string]bool{"devpts": true, "mqueue": true}

// mountOptions are a mount's options, sorted by who takes them.
type mountOptions struct {
	bind, recursive bool
	idmap           uint           // AT_RECURSIVE where the mounts below are mapped too
	mapped          bool           // by the mount's mappings, or the container's
	attr            unix.MountAttr // of the mount
	attrRecursive   unix.MountAttr // of the mount and those below it
	data            []string       // of the file system
}

func parseMountOptions(options []string) (mountOptions, error) {
	o := mountOptions{attrRecursive: unix.MountAttr{Propagation: unix.MS_PRIVATE}}
	for _, opt := range options {
		switch {
		case opt == "bind":
			o.bind = true
		case opt == "rbind":
			o.bind, o.recursive = true, true
		case opt == "defaults" || opt == "":
		case propagations[opt] != 0:
			o.attrRecursive.Propagation = propagations[opt]
		case opt == "shared" || opt == "rshared" || opt == "unbindable" || opt == "runbindable":
			return o, fmt.Errorf("option %s: not supported for wasm containers", opt)
		case opt == "idmap":
			o.mapped = true
		case opt == "ridmap":
			o.mapped, o.idmap = true, unix.AT_RECURSIVE
		default:
			if a, ok := attributes[opt]; ok {
				o.attr.Attr_set = o.attr.Attr_set&^a.clear | a.set
				o.attr.Attr_clr |= a.clear
			} else if a, ok := attributes[strings.TrimPrefix(opt, "r")]; ok && strings.HasPrefix(opt, "r") {
				o.attrRecursive.Attr_set = o.attrRecursive.Attr_set&^a.clear | a.set
				o.attrRecursive.Attr_clr |= a.clear
			} else {
				o.data = append(o.data, opt)
			}
		}
	}
	return o, nil
}

// A source is a mount that is attached nowhere yet: the clone of a tree of the
// host, or a new file system.
type source struct {
	fd  int
	dir bool
}

// openSource opens what m, of cfg, mounts. A nil source and a nil error: m is one
// of those a wasm container goes without.
func openSource(m specs.Mount, cfg Config) (_ *source, err error) {
	if _, ok := kernelFilesystems[m.Type]; ok || unusedFilesystems[m.Type] {
		return nil, nil
	}
	o, err := parseMountOptions(m.Options)
	if err != nil {
		return nil, err
	}
	ids, err := mountMappings(m, o, cfg.IDs)
	if err != nil {
		return nil, err
	}
	s := &source{fd: -1}
	defer func() {
		if err != nil && s.fd >= 0 {
			unix.Close(s.fd)
		}
	}()
	if o.bind || m.Type == "bind" {
		if len(o.data) > 0 {
			return nil, fmt.Errorf("option %s: unknown to a bind mount", o.data[0])
		}
		path := m.Source
		if !filepath.IsAbs(path) {
			path = filepath.Join(cfg.Base, path)
		}
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if o.recursive {
			flags |= unix.AT_RECURSIVE
		}
		if s.fd, err = unix.OpenTree(unix.AT_FDCWD, path, flags); err != nil {
			return nil, &os.PathError{Op: "bind", Path: path, Err: err}
		}
		if kernel, err := onKernelFilesystem(s.fd); err != nil || kernel {
			unix.Close(s.fd)
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(s.fd, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		s.dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		if ids != nil {
			if err := mapIDs(s.fd, o.idmap, *ids, cfg.NewUserNamespace); err != nil {
				return nil, fmt.Errorf("bind %s: %w", path, err)
			}
		}
	} else if ids != nil {
		return nil, errors.New("id mappings: only a bind mount can have them")
	} else {
		s.dir = true
		if s.fd, err = newFilesystem(m.Type, m.Source, append(o.data, cfg.Labels.mountOptions()...)); err != nil {
			return nil, err
		}
	}
	if err := unix.MountSetattr(s.fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &o.attrRecursive); err != nil {
		return nil, fmt.Errorf("mount attributes: %w", err)
	}
	if o.attr != (unix.MountAttr{}) {
		if err := unix.MountSetattr(s.fd, "", unix.AT_EMPTY_PATH, &o.attr); err != nil {
			return nil, fmt.Errorf("mount attributes: %w", err)
		}
	}
	return s, nil
}

// mountMappings are the id mappings that m is to have: its own, or those of the
// container; nil for none.
func mountMappings(m specs.Mount, o mountOptions, container *IDMappings) (*IDMappings, error) {
	switch {
	case len(m.UIDMappings) > 0 && len(m.GIDMappings) > 0:
		return &IDMappings{m.UIDMappings, m.GIDMappings}, nil
	case len(m.UIDMappings)+len(m.GIDMappings) > 0:
		return nil, errors.New("id mappings: of users or of groups only")
	case o.mapped && container == nil:
		return nil, errors.New("option idmap: neither the mount nor the container has id mappings")
	case o.mapped:
		return container, nil
	}
	return nil, nil
}

// mapIDs has the files of a mount that is attached nowhere belong to whom ids say.
func mapIDs(mount int, recursive uint, ids IDMappings, newUserNamespace func(IDMappings) (*os.File, error)) error {
	ns, err := newUserNamespace(ids)
	if err != nil {
		return fmt.Errorf("id mappings: %w", err)
	}
	defer ns.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	err = unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH|recursive, &attr)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("id mappings: %w: a file system that does not support them", err)
	}
	if err != nil {
		return fmt.Errorf("id mappings: %w", err)
	}
	return nil
}

func onKernelFilesystem(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, fmt.Errorf("statfs: %w", err)
	}
	for _, magic := range kernelFilesystems {
		if st.Type == magic {
			return true, nil
		}
	}
	return false, nil
}

// newFilesystem is a mount of a new file system of the given type, attached
// nowhere.
func newFilesystem(fstype, src string, data []string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("file system %q: %w", fstype, err)
	}
	defer unix.Close(fs)
	if src != "" {
		if err := unix.FsconfigSetString(fs, "source", src); err != nil {
			return -1, fmt.Errorf("file system %s: source %s: %w", fstype, src, err)
		}
	}
	for _, d := range data {
		key, value, ok := strings.Cut(d, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("file system %s: option %s: %w", fstype, d, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("file system %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("file system %s: %w", fstype, err)
	}
	return fd, nil
}

// attach puts s at path of the tree root, below no symbolic link that leads out
// of it, and makes the target where the image lacks it.
func (s *source) attach(root int, path string) error {
	target, err := makeTarget(root, path, s.dir)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := unix.MoveMount(s.fd, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// openInRoot opens path of the tree root as if root were "/": no symbolic link
// leads out of it, and none of procfs's is followed.
func openInRoot(root int, path string, flags uint64) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// OpenInRoot opens path of the directory root, a descriptor, as if that were the
// process's root.
func OpenInRoot(root int, path string, flags int) (*os.File, error) {
	fd, err := openInRoot(root, path, uint64(flags))
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makeTarget opens path of the tree root with O_PATH. A missing path is made, a
// directory or, for the last element of a target that is not one, an empty file.
// A dangling symbolic link on the way is an error.
func makeTarget(root int, path string, dir bool) (int, error) {
	path = filepath.Clean("/" + path)
	fd, err := openInRoot(root, path, unix.O_PATH)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, name := filepath.Split(path)
	up, err := makeTarget(root, parent, true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(up)
	if dir {
		err = unix.Mkdirat(up, name, 0o755)
	} else {
		err = unix.Mknodat(up, name, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("make %s: %w", path, err)
	}
	return openInRoot(root, path, unix.O_PATH)
}

// A Device is a character device.
type Device struct {
	Name         string
	Major, Minor uint32
}

// Devices are those a guest's /dev has.
var Devices = []Device{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9},
}

func makeDevices(dev int) error {
	for _, d := range Devices {
		if err := unix.Mknodat(dev, d.Name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
			return fmt.Errorf("make %s: %w", d.Name, err)
		}
		// The umask of whoever started us has been taken off.
		if err := unix.Fchmodat(dev, d.Name, 0o666, 0); err != nil {
			return fmt.Errorf("make %s: %w", d.Name, err)
		}
	}
	return nil
}

// deviceTypes are the letters of a specification's devices.
var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

// makeDevice makes a device of a specification in the tree root. What can be done
// with it is up to the cgroup and to its mode.
func makeDevice(root int, d specs.LinuxDevice, ids *IDMappings) error {
	kind, ok := deviceTypes[d.Type]
	if !ok {
		return fmt.Errorf("type %q: unknown", d.Type)
	}
	var number int
	if kind != unix.S_IFIFO {
		number = int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))
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
	owner, err := ids.User(owner)
	if err != nil {
		return err
	}
	parent, name := filepath.Split(filepath.Clean("/" + d.Path))
	up, err := makeTarget(root, parent, true)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	err = unix.Mknodat(up, name, kind|mode, number)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if e := unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW); e != nil {
			return e
		}
		if st.Mode&unix.S_IFMT == kind && st.Rdev == uint64(number) {
			return nil // one that every /dev has
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(up, name, int(owner.UID), int(owner.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(up, name, mode, 0) // whatever the umask
}

// cover puts on top of path of the tree root what openCover opens for a directory
// or for anything else. A path that is not there needs none.
func cover(root int, path string, openCover func(target int, dir bool) (int, error)) error {
	target, err := openInRoot(root, path, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	mount, err := openCover(target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return err
	}
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// openNothing is a cover under which nothing is seen.
func openNothing(_ int, dir bool) (int, error) {
	if dir {
		return newFilesystem("tmpfs", "tmpfs", []string{"mode=0755", "size=4k"})
	}
	return unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// openItself is a cover that shows what is there.
func openItself(target int, _ bool) (int, error) {
	return unix.OpenTree(target, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
}

// detachKernelFilesystems takes off the ones that came in below a recursive
// bind mount.
func detachKernelFilesystems(below string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(below))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	// Later mounts may lie on top of earlier ones.
	for i := len(mounts) - 1; i >= 0; i-- {
		if _, ok := kernelFilesystems[mounts[i].FSType]; !ok {
			continue
		}
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "unmount", Path: mounts[i].Mountpoint, Err: err}
		}
	}
	return nil
}

// needsKernel explains the error of a kernel that is too old: mount_setattr(2)
// is the youngest of the calls made here.
func needsKernel(err error) error {
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: Linux 5.12 or later is needed", err)
	}
	return err
}
