package sandbox

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The staging root has these, and the programs that processes run. Nothing in it
// can be written.
const (
	// The host's root is below the covered directory until [Walls.Build] is done,
	// with an empty one mounted on top of that: no path leads there.
	covered   = "/covered"
	hostBelow = "/covered/host"
)

// A Stage is what the staging roots of processes are clones of, with the program
// that they run. It is in a mount namespace of its own, since a tree can be cloned
// in its own namespace only; and the program is mounted in it for good, since one
// that has been replaced cannot be mounted any more.
type Stage struct {
	program string
	mnt     *os.File // the namespace
	root    *os.File
}

// NewStage makes a stage for the static program of that path, which processes run
// under one of the given names: it is how ps(1) lists a process, 15 bytes of it.
func NewStage(program string, names ...string) (_ *Stage, err error) {
	s := &Stage{program: program}
	mounts := make([]int, 0, len(names))
	defer func() {
		for _, fd := range mounts {
			unix.Close(fd)
		}
		if err != nil {
			s.Close()
		}
	}()
	for range names {
		fd, err := cloneProgram(program)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, fd)
	}
	t := newThread()
	defer t.close()
	if err := t.do(func() error { return s.make(mounts, names) }); err != nil {
		return nil, fmt.Errorf("staging root: %w", err)
	}
	return s, nil
}

// cloneProgram clones the mount of a program, with just that in it: read-only, so
// that nobody who gets at the exe of a process in procfs can write to the file.
func cloneProgram(path string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "clone program", Path: path, Err: needsKernel(err)}
	}
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Attr_clr:    unix.MOUNT_ATTR_NOEXEC, // as the file system with containerd's root directory may be mounted
		Propagation: unix.MS_PRIVATE,
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "clone program", Path: path, Err: needsKernel(err)}
	}
	return fd, nil
}

// make makes the stage on a thread that ends thereafter.
func (s *Stage) make(programs []int, names []string) error {
	fd, err := newFilesystem("tmpfs", "staging", []string{"mode=0555", "size=64k"}, "")
	if err != nil {
		return needsKernel(err)
	}
	s.root = os.NewFile(uintptr(fd), "staging root")
	for _, dir := range []string{Rootfs, Attached, covered, hostBelow} {
		if err := unix.Mkdirat(fd, dir[1:], 0o755); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := unix.Mknodat(fd, name, unix.S_IFREG|0o555, 0); err != nil {
			return err
		}
	}
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if s.mnt, err = openNamespace(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	// Anywhere that is in every kernel: the mount namespace is left with nothing else.
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	for i, name := range names {
		if err := unix.MoveMount(programs[i], "", fd, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return err
		}
	}
	return pivot(fd)
}

// clone clones the stage on a thread with a mount namespace own, in which the
// clone is to be attached. When it fails the thread may not be there any more.
func (s *Stage) clone(own *os.File) (int, error) {
	if err := join(unix.CLONE_NEWNS, s.mnt); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(int(s.root.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("clone: %w", err)
	}
	if err := join(unix.CLONE_NEWNS, own); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Close frees the stage. Roots that were cloned from it stay.
func (s *Stage) Close() {
	for _, f := range []*os.File{s.mnt, s.root} {
		if f != nil {
			f.Close()
		}
	}
}

// chroot makes the directory root the root of the calling thread, and its working
// directory.
func chroot(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("chdir: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return nil
}

// pivot makes the mount root the root of every process in the calling thread's
// mount namespace that has the thread's own, and lets go of the old one.
func pivot(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter: %w", err)
	}
	// The old root ends up on top of the new one, where "." finds it:
	// pivot_root(2), NOTES.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}
