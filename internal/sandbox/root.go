package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountID is the kernel's number of the mount that the open file fd is in.
func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	return st.Mnt_id, nil
}

// SameMount tells whether two open files are in the same mount.
func SameMount(a, b *os.File) (bool, error) {
	one, err := mountID(int(a.Fd()))
	if err != nil {
		return false, err
	}
	other, err := mountID(int(b.Fd()))
	return one == other, err
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
