package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// attributes are the mount options that belong to the mount, not to the file
// system: mount_setattr(2). With an r in front they are meant for the mounts
// below too.
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
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {clear: unix.MOUNT_ATTR__ATIME},
}

// undone are the options that undo another, of the same mount: what the source of
// a bind mount has stays, as it does with mount(2).
var undone = map[string]uint64{
	"atime": unix.MOUNT_ATTR_NOATIME, "norelatime": unix.MOUNT_ATTR_RELATIME, "nostrictatime": unix.MOUNT_ATTR_STRICTATIME,
}

// superblockFlags are the options that mount(2) takes as flags and that belong to
// the file system. A bind mount makes none, so there they say nothing.
var superblockFlags = map[string]bool{
	"sync": true, "async": true, "dirsync": true, "lazytime": true, "nolazytime": true, "mand": true, "nomand": true,
}

// idleOptions say nothing that the kernel could be told of a new mount.
var idleOptions = map[string]bool{
	"": true, "defaults": true, "silent": true, "loud": true, "iversion": true, "noiversion": true,
}

// follows says of each propagation whether what the host mounts later is to be
// seen. That is all there is to it: a guest mounts nothing that could go the other
// way, or be bound elsewhere.
var follows = map[string]bool{
	"private": false, "rprivate": false, "unbindable": false, "runbindable": false,
	"slave": true, "rslave": true, "shared": true, "rshared": true,
}

// CheckPropagation looks whether p is a propagation that a root file system can be
// asked to have. None makes a difference: it is a mount of this container's alone.
func CheckPropagation(p string) error {
	if _, ok := follows[p]; !ok && p != "" {
		return fmt.Errorf("%q: unknown", p)
	}
	return nil
}

// mountOptions are a mount's options, sorted by who takes them.
type mountOptions struct {
	bind, recursive bool
	follow          bool           // show what the host mounts later
	copyUp          bool           // of what the new file system covers
	idmap           uint           // AT_RECURSIVE where the mounts below are mapped too
	mapped          bool           // by the mount's mappings, or the container's
	attr            unix.MountAttr // of the mount
	attrRecursive   unix.MountAttr // of the mount and those below it
	flags           []string       // of the file system, as those of superblockFlags
	data            []string       // of the file system
}

func parseMountOptions(options []string) mountOptions {
	var o mountOptions
	for _, opt := range options {
		follow, propagation := follows[opt]
		policy, undoes := undone[opt]
		a, attribute := attributes[opt]
		r, recursive := attributes[strings.TrimPrefix(opt, "r")]
		switch {
		case opt == "bind":
			o.bind = true
		case opt == "rbind":
			o.bind, o.recursive = true, true
		case opt == "tmpcopyup":
			o.copyUp = true
		case idleOptions[opt]:
		case propagation:
			o.follow = follow
		case opt == "idmap":
			o.mapped = true
		case opt == "ridmap":
			o.mapped, o.idmap = true, unix.AT_RECURSIVE
		case superblockFlags[opt]:
			o.flags = append(o.flags, opt)
		case undoes:
			if o.attr.Attr_set&unix.MOUNT_ATTR__ATIME == policy {
				o.attr.Attr_set &^= unix.MOUNT_ATTR__ATIME
				o.attr.Attr_clr &^= unix.MOUNT_ATTR__ATIME
			}
		case attribute:
			o.attr.Attr_set = o.attr.Attr_set&^a.clear | a.set
			o.attr.Attr_clr |= a.clear
		case recursive && strings.HasPrefix(opt, "r"):
			o.attrRecursive.Attr_set = o.attrRecursive.Attr_set&^r.clear | r.set
			o.attrRecursive.Attr_clr |= r.clear
		default:
			o.data = append(o.data, opt)
		}
	}
	return o
}

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

// mapOptions maps the users and groups that the options of a file system name.
func (m *IDMappings) mapOptions(options []string) ([]string, error) {
	if m == nil {
		return options, nil
	}
	mapped := make([]string, len(options))
	for i, opt := range options {
		mapped[i] = opt
		key, value, _ := strings.Cut(opt, "=")
		ids := m.UIDs
		switch key {
		case "uid":
		case "gid":
			ids = m.GIDs
		default:
			continue
		}
		id, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("option %s: not a number", opt)
		}
		host, ok := toHost(ids, uint32(id))
		if !ok {
			return nil, fmt.Errorf("option %s: not mapped in the user namespace", opt)
		}
		mapped[i] = fmt.Sprintf("%s=%d", key, host)
	}
	return mapped, nil
}

// checkLayers refuses an overlay of a kernel file system, which would show it
// under another name.
func checkLayers(options []string) error {
	for _, opt := range options {
		key, value, _ := strings.Cut(opt, "=")
		switch key {
		case "lowerdir", "lowerdir+", "datadir+", "upperdir":
		default:
			continue
		}
		for _, path := range strings.Split(value, ":") {
			var st unix.Statfs_t
			if err := unix.Statfs(path, &st); err == nil && isKernelFilesystem(&st) {
				return fmt.Errorf("option %s: %s is on a kernel file system", opt, path)
			}
		}
	}
	return nil
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

// kernelFilesystems show or change the state of the kernel, by the types that
// mountinfo has and statfs(2) gives: linux/magic.h, or the file system's own source. A WASI
// guest has no use for them.
var kernelFilesystems = map[string]int64{
	// Processes. /proc/self/mem is a way out of the engine, and what root may write
	// in /proc/sys one to the host.
	"proc":   unix.PROC_SUPER_MAGIC,
	"nsfs":   unix.NSFS_MAGIC,
	"pidfs":  unix.PID_FS_MAGIC,
	"devpts": unix.DEVPTS_SUPER_MAGIC, // others' terminals
	// Devices, drivers, firmware.
	"sysfs":      unix.SYSFS_MAGIC,
	"debugfs":    unix.DEBUGFS_MAGIC,
	"tracefs":    unix.TRACEFS_MAGIC,
	"configfs":   0x62656570,
	"efivarfs":   unix.EFIVARFS_MAGIC,
	"pstore":     unix.PSTOREFS_MAGIC,
	"fusectl":    0x65735543,
	"xenfs":      unix.XENFS_SUPER_MAGIC,
	"binder":     unix.BINDERFS_SUPER_MAGIC,
	"openpromfs": unix.OPENPROM_SUPER_MAGIC,
	// Programs that the kernel runs: for others, or when a file is executed.
	"bpf":         unix.BPF_FS_MAGIC,
	"binfmt_misc": unix.BINFMTFS_MAGIC,
	// Limits.
	"cgroup":  unix.CGROUP_SUPER_MAGIC,
	"cpuset":  unix.CGROUP_SUPER_MAGIC,
	"cgroup2": unix.CGROUP2_SUPER_MAGIC,
	"resctrl": unix.RDTGROUP_SUPER_MAGIC,
	// Labels and policies.
	"securityfs": unix.SECURITYFS_MAGIC,
	"selinuxfs":  unix.SELINUX_MAGIC,
	"smackfs":    unix.SMACK_MAGIC,
	"apparmorfs": unix.AAFS_MAGIC,
	// Servers in the kernel.
	"nfsd":       0x6e667364,
	"rpc_pipefs": 0x67596969,
	// Other processes' pipes and sockets, by way of their descriptors.
	"pipefs":       unix.PIPEFS_MAGIC,
	"sockfs":       unix.SOCKFS_MAGIC,
	"anon_inodefs": unix.ANON_INODE_FS_MAGIC,
	"secretmem":    unix.SECRETMEM_MAGIC,
	"dmabuf":       unix.DMA_BUF_MAGIC,
}

// defaultFilesystems are in every container engine's default specification: they
// are left out without an error. A WASI guest has neither terminals nor message
// queues.
var defaultFilesystems = map[string]bool{
	"proc": true, "sysfs": true, "cgroup": true, "cgroup2": true, "devpts": true, "mqueue": true,
}

func isKernelFilesystem(st *unix.Statfs_t) bool {
	for _, magic := range kernelFilesystems {
		if int64(st.Type) == magic { //nolint:unconvert // an int32 elsewhere
			return true
		}
	}
	return false
}

func onKernelFilesystem(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, fmt.Errorf("statfs: %w", err)
	}
	return isKernelFilesystem(&st), nil
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

// mountFlags are those of mount(2) that set what is not set by default.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "lazytime": unix.MS_LAZYTIME, "mand": unix.MS_MANDLOCK,
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

// mountID is the kernel's number of the mount that the open file fd is in.
func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	return st.Mnt_id, nil
}

// notTheRoot refuses a target that is the root of the tree: a mount there would
// cover everything, or, under a root that is open already, nothing.
func notTheRoot(root, target int) error {
	var a, b unix.Statx_t
	const mask = unix.STATX_MNT_ID | unix.STATX_INO
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH, mask, &a); err != nil {
		return fmt.Errorf("statx: %w", err)
	}
	if err := unix.Statx(target, "", unix.AT_EMPTY_PATH, mask, &b); err != nil {
		return fmt.Errorf("statx: %w", err)
	}
	if a.Mnt_id == b.Mnt_id && a.Ino == b.Ino {
		return errors.New("the target is the root itself")
	}
	return nil
}

// maxTries bounds how often a path is looked up that changes under the eyes of
// the kernel: openat2(2), EAGAIN. Any rename and any mount on the machine may be
// the reason.
const maxTries = 1000

// openInRoot opens path of the tree root as if root were "/": no symbolic link
// leads out of it, and none of procfs's is followed.
func openInRoot(root int, path string, flags uint64) (fd int, err error) {
	for range maxTries {
		fd, err = unix.Openat2(root, path, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, fmt.Errorf("%w: the path keeps changing", err)
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

func cleanPath(path string) string { return filepath.Clean("/" + path) }

// makeTarget opens path of the tree root with O_PATH. A missing path is made, a
// directory or, for the last element of a target that is not one, an empty file.
// A dangling symbolic link on the way is an error.
func makeTarget(root int, path string, dir bool) (fd int, made bool, err error) {
	path = cleanPath(path)
	fd, err = openInRoot(root, path, unix.O_PATH)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, false, err
	}
	parent, name := filepath.Split(path)
	up, _, err := makeTarget(root, parent, true)
	if err != nil {
		return -1, false, err
	}
	defer unix.Close(up)
	if dir {
		err = unix.Mkdirat(up, name, 0o755)
	} else {
		err = unix.Mknodat(up, name, unix.S_IFREG|0o644, 0)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, false, fmt.Errorf("make %s: %w", path, err)
	}
	// It may be there: another container, with the same volume, needs it too.
	made = err == nil
	fd, err = openInRoot(root, path, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) && !made {
		err = fmt.Errorf("make %s: %w: a symbolic link that leads nowhere", path, unix.EEXIST)
	}
	return fd, made, err
}

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

// listKernelMounts are the places of the kernel file systems that the calling thread sees.
func listKernelMounts() (places []string, err error) {
	_, err = mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		if _, ok := kernelFilesystems[m.FSType]; ok {
			places = append(places, m.Mountpoint)
		}
		return true, false
	})
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return places, nil
}

// holdsKernelFilesystem tells whether one of the places is below the open file dir.
func holdsKernelFilesystem(dir int, places []string) (bool, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", dir))
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(places, func(place string) bool {
		rel, err := filepath.Rel(path, place)
		return err == nil && filepath.IsLocal(rel)
	}), nil
}

// detachKernelFilesystems takes off the tree root what came along with it: by a
// recursive bind mount, or as part of a root file system that was mounted elsewhere.
func detachKernelFilesystems(root int) error {
	// Somebody who shares a volume may move the place of a mount while it is being
	// looked for.
	for range maxTries {
		again, err := tryDetachKernelFilesystems(root)
		if err != nil || !again {
			return err
		}
	}
	return errors.New("kernel file systems: their mounts keep moving")
}

func tryDetachKernelFilesystems(root int) (again bool, err error) {
	mounts, err := mountsBelow(root)
	if err != nil {
		return false, err
	}
	// Later mounts may lie on top of earlier ones.
	for _, m := range slices.Backward(mounts) {
		if _, ok := kernelFilesystems[m.FSType]; !ok || slices.ContainsFunc(mounts, func(top *mountinfo.Info) bool {
			return top.Parent == m.ID && top.Mountpoint == m.Mountpoint // covers it: nobody gets there
		}) {
			continue
		}
		again = true
		place, err := openInRoot(root, m.Mountpoint, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		if id, err := mountID(place); err == nil && id == uint64(m.ID) {
			err = unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", place), unix.MNT_DETACH)
			if err != nil && !errors.Is(err, unix.EINVAL) {
				unix.Close(place)
				return false, &os.PathError{Op: "unmount", Path: m.Mountpoint, Err: err}
			}
		}
		unix.Close(place)
	}
	return again, nil
}

// mountsBelow are the mounts below root, the root of a mount, each with its path
// from there. The calling thread's root must be its own.
func mountsBelow(root int) ([]*mountinfo.Info, error) {
	id, err := mountID(root)
	if err != nil {
		return nil, err
	}
	list, err := openMountinfo(root)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer list.Close()
	all, err := mountinfo.GetMountsFromReader(list, nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	children := map[int][]*mountinfo.Info{}
	prefix := ""
	for _, m := range all {
		children[m.Parent] = append(children[m.Parent], m)
		if uint64(m.ID) == id {
			prefix = m.Mountpoint
		}
	}
	var below []*mountinfo.Info
	for next := children[int(id)]; len(next) > 0; next = next[1:] {
		m := next[0]
		m.Mountpoint = cleanPath(strings.TrimPrefix(m.Mountpoint, prefix))
		below = append(below, m)
		next = append(next, children[m.ID]...)
	}
	return below, nil
}

// openMountinfo opens the list of what is mounted below root: procfs shows what is
// below the root of the thread that opens the file.
func openMountinfo(root int) (_ *os.File, err error) {
	proc, err := os.OpenFile("/proc/thread-self", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	own, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer own.Close()
	if err := chroot(root); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(proc.Fd()), "mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if e := chroot(int(own.Fd())); e != nil {
		if err == nil {
			unix.Close(fd)
		}
		return nil, e
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "mountinfo", Err: err}
	}
	return os.NewFile(uintptr(fd), "mountinfo"), nil
}

// needsKernel explains the error of a kernel that is too old: mount_setattr(2)
// is the youngest of the calls made here.
func needsKernel(err error) error {
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: Linux 5.12 or later is needed", err)
	}
	return err
}
