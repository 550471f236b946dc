package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A source is a mount that is attached nowhere yet: the clone of a tree of the
// host, or a new file system.
type source struct {
	fd    int
	dir   bool
	below bool // there may be other mounts below it
	dev   uint64

	// In this order: what every mount has, and what is asked for.
	walls, attr, attrRecursive unix.MountAttr

	// Of a tmpfs: nobody else has it.
	tmpfs       bool
	inheritMode bool // from the directory it covers
	copyUp      bool
}

// openSource opens what m, of cfg, mounts. A nil source and a nil error: m is one
// of those a wasm container goes without.
func openSource(m specs.Mount, cfg Config) (_ *source, err error) {
	o := parseMountOptions(m.Options)
	bind := o.bind || m.Type == "bind"
	if !bind && defaultFilesystems[m.Type] {
		return nil, nil
	}
	ids, err := mountMappings(m, o, cfg.IDs)
	if err != nil {
		return nil, err
	}
	s := &source{fd: -1, attr: o.attr, attrRecursive: o.attrRecursive}
	defer func() {
		if err != nil && s.fd >= 0 {
			unix.Close(s.fd)
		}
	}()
	if bind {
		err = s.openBind(m, o, cfg, ids)
	} else {
		err = s.openFilesystem(m, o, cfg, ids)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	s.dir, s.dev = st.Mode&unix.S_IFMT == unix.S_IFDIR, st.Dev
	// Whoever asks for devices names them, as a device or as the source of a bind
	// mount; what an image or a volume brings along stays closed.
	walls := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if kind := st.Mode & unix.S_IFMT; s.tmpfs || kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		walls = unix.MOUNT_ATTR_NOSUID
	}
	s.walls = unix.MountAttr{Attr_set: walls, Propagation: unix.MS_PRIVATE}
	return s, nil
}

// openBind clones a tree of the host. A kernel file system is not given to a
// guest: in its place is what a masked path has.
func (s *source) openBind(m specs.Mount, o mountOptions, cfg Config, ids *IDMappings) (err error) {
	if len(o.data) > 0 {
		return fmt.Errorf("option %s: unknown to a bind mount", o.data[0])
	}
	if o.copyUp {
		return errors.New("option tmpcopyup: unknown to a bind mount")
	}
	path := m.Source
	if !filepath.IsAbs(path) {
		path = filepath.Join(cfg.Base, path)
	}
	place, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	defer unix.Close(place)
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if o.recursive {
		flags |= unix.AT_RECURSIVE
		if s.below, err = holdsKernelFilesystem(place, cfg.kernelMounts); err != nil {
			return fmt.Errorf("bind %s: %w", path, err)
		}
	}
	if s.fd, err = unix.OpenTree(place, "", flags); err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	kernel, err := onKernelFilesystem(s.fd)
	if err != nil {
		return err
	}
	if kernel {
		var st unix.Stat_t
		if err := unix.Fstat(s.fd, &st); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		unix.Close(s.fd)
		s.fd, err = openNothing(-1, st.Mode&unix.S_IFMT == unix.S_IFDIR)
		s.attr = unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		return err
	}
	if ids != nil {
		if err := mapIDs(s.fd, o.idmap, *ids, cfg.NewUserNamespace); err != nil {
			return fmt.Errorf("bind %s: %w", path, err)
		}
	}
	return nil
}

// openFilesystem mounts a new file system.
func (s *source) openFilesystem(m specs.Mount, o mountOptions, cfg Config, ids *IDMappings) (err error) {
	if ids != nil {
		return errors.New("id mappings: only a bind mount can have them")
	}
	if _, ok := kernelFilesystems[m.Type]; ok || m.Type == "devtmpfs" {
		return fmt.Errorf("file system %s: not given to a wasm container", m.Type)
	}
	options := slices.Concat(o.flags, o.data, cfg.Labels.mountOptions())
	s.tmpfs, s.copyUp = m.Type == "tmpfs", o.copyUp
	if o.copyUp && !s.tmpfs {
		return errors.New("option tmpcopyup: only a tmpfs can have it")
	}
	if s.tmpfs {
		s.inheritMode = !slices.ContainsFunc(options, func(opt string) bool { return strings.HasPrefix(opt, "mode=") })
		if options, err = cfg.IDs.mapOptions(options); err != nil {
			return err
		}
	} else if o.attr.Attr_set&unix.MOUNT_ATTR_RDONLY != 0 {
		options = append(options, "ro") // or it would be opened, and its disk written to
	}
	if err := checkLayers(options); err != nil {
		return err
	}
	s.fd, err = newFilesystem(m.Type, m.Source, options, cfg.Base)
	return err
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

// maxOption is the longest value that fsconfig(2) takes of an option.
const maxOption = 255

// newFilesystem is a mount of a new file system of the given type, attached
// nowhere. For a moment it is at the path over, when options are too long for
// fsconfig(2).
func newFilesystem(fstype, src string, options []string, over string) (int, error) {
	for _, opt := range options {
		if _, value, _ := strings.Cut(opt, "="); len(value) > maxOption {
			return oldFilesystem(fstype, src, options, over)
		}
	}
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
	for _, opt := range options {
		key, value, ok := strings.Cut(opt, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("file system %s: option %s: %w", fstype, opt, err)
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

// oldFilesystem is newFilesystem by mount(2).
func oldFilesystem(fstype, src string, options []string, over string) (_ int, err error) {
	var flags uintptr
	var data []string
	for _, opt := range options {
		if flag, ok := mountFlags[opt]; ok {
			flags |= flag
		} else if !superblockFlags[opt] {
			data = append(data, opt)
		}
	}
	if err := unix.Mount(src, over, fstype, flags, strings.Join(data, ",")); err != nil {
		return -1, fmt.Errorf("file system %s: options %s: %w", fstype, strings.Join(data, ","), err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(over, unix.MNT_DETACH)) }()
	fd, err := unix.OpenTree(unix.AT_FDCWD, over, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("file system %s: %w", fstype, err)
	}
	return fd, nil
}

// attach puts s at path of the tree root, below no symbolic link that leads out
// of it, and makes the target where the image lacks it. A tmpfs stays writable:
// see protect.
func (s *source) attach(root int, path string) error {
	target, made, err := makeTarget(root, path, s.dir)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := notTheRoot(root, target); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	switch dir := st.Mode&unix.S_IFMT == unix.S_IFDIR; {
	case s.dir && !dir:
		return fmt.Errorf("attach: %w", unix.ENOTDIR)
	case dir && !s.dir:
		return fmt.Errorf("attach: %w", unix.EISDIR)
	case s.tmpfs && !made:
		if err := s.takeOver(target, st.Mode); err != nil {
			return err
		}
	}
	attr := s.attr
	if s.tmpfs {
		attr.Attr_set &^= unix.MOUNT_ATTR_RDONLY
	}
	for _, a := range []struct {
		attr  unix.MountAttr
		flags uint
	}{{s.walls, unix.AT_RECURSIVE}, {attr, 0}, {s.attrRecursive, unix.AT_RECURSIVE}} {
		if a.attr == (unix.MountAttr{}) {
			continue
		}
		if err := unix.MountSetattr(s.fd, "", unix.AT_EMPTY_PATH|a.flags, &a.attr); err != nil {
			return fmt.Errorf("mount attributes: %w", err)
		}
	}
	if err := moveMount(s.fd, target); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	// Whoever shares a volume that the target is in can have moved that meanwhile.
	there, err := openInRoot(root, cleanPath(path), unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(there)
	want, err := mountID(s.fd)
	if err != nil {
		return err
	}
	if got, err := mountID(there); err != nil || got != want {
		return errors.Join(errMoved, err)
	}
	return nil
}

var errMoved = errors.New("the target was moved away meanwhile")

func moveMount(mount, target int) error {
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// protect makes a tmpfs read-only that is to be: once all is made that is in it.
func (s *source) protect() error {
	attr := unix.MountAttr{Attr_set: s.attr.Attr_set & unix.MOUNT_ATTR_RDONLY}
	if !s.tmpfs || attr.Attr_set == 0 {
		return nil
	}
	if err := unix.MountSetattr(s.fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount attributes: %w", err)
	}
	return nil
}

// takeOver gives a tmpfs the mode of the directory that it is to cover, and a copy
// of what is in there, where that is asked for.
func (s *source) takeOver(dir int, mode uint32) error {
	if s.inheritMode {
		if err := unix.Fchmodat(s.fd, ".", mode&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if !s.copyUp {
		return nil
	}
	if err := copyTree(dir, s.fd); err != nil {
		return fmt.Errorf("option tmpcopyup: %w", err)
	}
	return nil
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
	if err := notTheRoot(root, target); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	mount, err := openCover(target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return err
	}
	return moveMount(mount, target)
}

// openNothing is a cover under which nothing is seen.
func openNothing(_ int, dir bool) (int, error) {
	if dir {
		return newFilesystem("tmpfs", "tmpfs", []string{"mode=0755", "size=4k"}, "")
	}
	return unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// openItself is a cover that shows what is there.
func openItself(target int, _ bool) (int, error) {
	return unix.OpenTree(target, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
}

// needsKernel explains the error of a kernel that is too old: mount_setattr(2)
// is the youngest of the calls made here.
func needsKernel(err error) error {
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: Linux 5.12 or later is needed", err)
	}
	return err
}
