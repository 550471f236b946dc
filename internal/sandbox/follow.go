package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A Follower shows a container what the host mounts, later, below the sources of
// its bind mounts with slave or shared propagation.
//
// The kernel would do that by itself. But it asks nobody, and so a procfs that the
// host mounts there would be given to the guest: see [kernelFilesystems]. So the
// container's mounts are private, and each mount that turns up on the host is
// looked at, cloned and attached; and detached when it is gone.
type Follower struct {
	host  *os.File // mountinfo of the host's mount namespace
	binds []followed
	shown map[string]shown // by hostMount.key
}

// shown is what the container has of a mount of the host. The zero value: what it
// had from the start, or is not to have.
type shown struct {
	id uint64 // of the clone
	at string // in the container
}

// followed is a bind mount whose source is followed.
type followed struct {
	source string // without symbolic links
	dest   string // in the container
	attr   unix.MountAttr
}

// newFollower is for the bind mounts of cfg, and nil when none is to be followed.
// It is made before they are: what is mounted in between comes twice, not never.
func newFollower(cfg Config) (*Follower, error) {
	f := &Follower{shown: map[string]shown{}}
	for _, m := range cfg.Mounts {
		o := parseMountOptions(m.Options)
		if !o.follow || !o.bind && m.Type != "bind" {
			continue
		}
		path := m.Source
		if !filepath.IsAbs(path) {
			path = filepath.Join(cfg.Base, path)
		}
		path, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, fmt.Errorf("mount at %s: bind: %w", m.Destination, err)
		}
		attr := o.attrRecursive
		attr.Attr_set |= (unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV) &^ attr.Attr_clr
		attr.Propagation = unix.MS_PRIVATE
		f.binds = append(f.binds, followed{path, cleanPath(m.Destination), attr})
	}
	if f.binds == nil {
		return nil, nil
	}
	// Not by package os: the runtime's poller would wait for its events as well, and
	// have some of them.
	const list = "/proc/thread-self/mountinfo"
	fd, err := unix.Open(list, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: list, Err: err}
	}
	f.host = os.NewFile(uintptr(fd), list)
	now, err := f.list()
	if err != nil {
		f.host.Close()
		return nil, err
	}
	for _, m := range now {
		f.shown[m.key] = shown{}
	}
	return f, nil
}

// A hostMount is a mount of the host below the source of bind.
type hostMount struct {
	id        uint64
	key, path string // key tells it from others, also of the same number later
	bind      followed
	shared    bool // its parent is: what is mounted there goes to others at all
	kernel    bool
}

func (f *Follower) list() ([]hostMount, error) {
	if _, err := f.host.Seek(0, 0); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	all, err := mountinfo.GetMountsFromReader(f.host, nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	shared := map[int]bool{}
	for _, m := range all {
		shared[m.ID] = strings.Contains(m.Optional, "shared:")
	}
	var found []hostMount
	for _, m := range all {
		for _, b := range f.binds {
			if rel, err := filepath.Rel(b.source, m.Mountpoint); err != nil || rel == "." || !filepath.IsLocal(rel) {
				continue
			}
			_, kernel := kernelFilesystems[m.FSType]
			key := fmt.Sprint(b.dest, " ", m.ID, " ", m.Major, ":", m.Minor, " ", m.Mountpoint)
			found = append(found, hostMount{uint64(m.ID), key, m.Mountpoint, b, shared[m.Parent], kernel})
		}
	}
	return found, nil
}

// Run follows until the process with the given pid, and the descriptor pidfd, has
// ended. What cannot be shown, report is told.
func (f *Follower) Run(pid, pidfd int, report func(error)) {
	defer f.host.Close()
	for {
		// First: what has changed since the list was read is an event already.
		if err := f.update(pid); err != nil {
			report(err)
		}
		fds := []unix.PollFd{{Fd: int32(f.host.Fd()), Events: unix.POLLPRI}, {Fd: int32(pidfd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			report(fmt.Errorf("poll: %w", err))
			return
		}
		if fds[1].Revents != 0 {
			return
		}
	}
}

// update makes the container's mounts what the host's are.
func (f *Follower) update(pid int) error {
	now, err := f.list()
	if err != nil {
		return err
	}
	gone := maps.Clone(f.shown)
	var errs []error
	for _, m := range now {
		delete(gone, m.key)
		if _, ok := f.shown[m.key]; ok {
			continue
		}
		f.shown[m.key] = shown{}
		if m.kernel || !m.shared {
			continue
		}
		if f.shown[m.key], err = m.show(pid); err != nil {
			errs = append(errs, fmt.Errorf("mount at %s: %s: %w", m.bind.dest, m.path, err))
		}
	}
	for key, s := range gone {
		delete(f.shown, key)
		if s.id == 0 {
			continue
		}
		if err := inMountsOf(pid, s.detach); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", s.at, err))
		}
	}
	return errors.Join(errs...)
}

// show attaches a clone of m in the container.
func (m hostMount) show(pid int) (shown, error) {
	clone, err := m.clone()
	if clone < 0 || err != nil {
		return shown{}, err
	}
	defer unix.Close(clone)
	rel, err := filepath.Rel(m.bind.source, m.path)
	if err != nil {
		return shown{}, err
	}
	at := filepath.Join(m.bind.dest, rel)
	err = inMountsOf(pid, func(root int) error {
		target, err := openInRoot(root, at, unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(target)
		if err := notTheRoot(root, target); err != nil {
			return err
		}
		return moveMount(clone, target)
	})
	if err != nil {
		return shown{}, err
	}
	id, err := mountID(clone)
	return shown{id, at}, err
}

// clone clones m; -1 when it is gone, or not for a guest. Whoever may write to
// the volume that it is in cannot have something else cloned.
func (m hostMount) clone() (_ int, err error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, m.path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, nil //nolint:nilerr // gone: the next list says so
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return -1, err
	}
	if st.Mnt_id != m.id || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return -1, nil
	}
	if kernel, err := onKernelFilesystem(fd); err != nil || kernel {
		return -1, err
	}
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	if err := unix.MountSetattr(clone, "", unix.AT_EMPTY_PATH, &m.bind.attr); err != nil {
		unix.Close(clone)
		return -1, err
	}
	return clone, nil
}

// detach takes s off the container whose root is given.
func (s shown) detach(root int) error {
	parent, name := filepath.Split(s.at)
	up, err := openInRoot(root, parent, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	fd, err := unix.Openat(up, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if id, err := mountID(fd); err != nil || id != s.id {
		return errors.Join(errMoved, err)
	}
	if err := unix.Fchdir(up); err != nil {
		return err
	}
	return unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// inMountsOf runs do on a thread in the mount namespace of a process, with its
// root. A process that has ended has none.
func inMountsOf(pid int, do func(root int) error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return inMounts(ns, func() error {
		root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(root)
		return do(root)
	})
}
