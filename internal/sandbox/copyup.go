package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the directories below each other that [copyTree] copies: two
// descriptors are open for each.
const maxDepth = 256

// copyTree copies what is in the directory from to the directory to, which nobody
// else can change: directories, files, symbolic links and FIFOs, with owners, modes
// and times. Devices and sockets it leaves out, and what is mounted below.
//
// No symbolic link is followed, whoever changes from meanwhile.
func copyTree(from, to int) error { return copyDirectory(from, to, maxDepth) }

func copyDirectory(from, to, depth int) error {
	if depth == 0 {
		return fmt.Errorf("more than %d directories below each other", maxDepth)
	}
	dir, err := openFile(from, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(from, to, name, depth); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func copyEntry(from, to int, name string, depth int) error {
	// Held open, so that what is looked at is what is copied.
	entry, err := unix.Openat2(from, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOENT) {
		return nil // mounted there, or gone
	}
	if err != nil {
		return err
	}
	defer unix.Close(entry)
	var st unix.Stat_t
	if err := unix.Fstat(entry, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = copySubdirectory(entry, to, name, depth)
	case unix.S_IFREG:
		err = copyFile(entry, to, name)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, e := unix.Readlinkat(entry, "", target)
		if err = e; err == nil {
			err = unix.Symlinkat(string(target[:n]), to, name)
		}
	case unix.S_IFIFO:
		err = unix.Mknodat(to, name, unix.S_IFIFO|0o600, 0)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(to, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copySubdirectory(entry, to int, name string, depth int) error {
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	sub, err := unix.Openat(to, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	return copyDirectory(entry, sub, depth-1)
}

// copyFile copies a regular file, holes as holes: what is copied takes memory.
func copyFile(entry, to int, name string) error {
	in, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", entry))
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := openFile(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	for offset := int64(0); ; {
		data, err := unix.Seek(int(in.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole is left
			return out.Truncate(info.Size())
		}
		if err != nil {
			return err
		}
		if offset, err = unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, offset-data)); err != nil {
			return err
		}
	}
}

func openFile(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
