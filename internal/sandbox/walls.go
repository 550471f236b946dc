package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// The staging root has these two directories and nothing else.
const (
	rootfsDir   = "/rootfs"
	attachedDir = "/attached"
)

// Attached is where [Walls.Attach] puts a directory, for as long as [Walls.Enter]
// has not been called.
const Attached = attachedDir

// Walls are the walls of the calling process, half built.
type Walls struct {
	cfg    Config
	rootfs int // O_PATH of the container's root, mounts and all; -1 without one
}

// Build makes the mounts of cfg and leaves the host's file system for a staging
// root. The process must be in a mount namespace of its own, and root in it.
//
// On an error the process is of no more use; it should exit.
func Build(cfg Config) (*Walls, error) {
	// Nothing mounted here may reach the host; what the host unmounts may go here too.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	w := &Walls{cfg: cfg, rootfs: -1}
	if err := w.setLimits(); err != nil {
		return nil, err
	}
	if err := w.setNames(); err != nil {
		return nil, err
	}
	staging, err := newFilesystem("tmpfs", "staging", []string{"mode=0555", "size=64k"})
	if err != nil {
		return nil, needsKernel(err)
	}
	defer unix.Close(staging)
	for _, dir := range []string{rootfsDir, attachedDir} {
		if err := unix.Mkdirat(staging, dir[1:], 0o755); err != nil {
			return nil, fmt.Errorf("staging root: %w", err)
		}
	}
	tree := -1
	if cfg.Rootfs != "" {
		tree, err = unix.OpenTree(unix.AT_FDCWD, cfg.Rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, &os.PathError{Op: "open root file system", Path: cfg.Rootfs, Err: needsKernel(err)}
		}
		defer unix.Close(tree)
		private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &private); err != nil {
			return nil, fmt.Errorf("make root file system private: %w", needsKernel(err))
		}
	}
	// Every source is opened before the new root covers any of the host's paths.
	sources := make([]*source, len(cfg.Mounts))
	for i, m := range cfg.Mounts {
		if sources[i], err = openSource(m, cfg.Base); err != nil {
			return nil, fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
	}
	if err := unix.MoveMount(staging, "", unix.AT_FDCWD, cfg.Base, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("mount staging root: %w", err)
	}
	if tree >= 0 {
		if err := w.assemble(tree, staging, sources); err != nil {
			return nil, err
		}
	}
	if err := pivot(staging); err != nil {
		return nil, err
	}
	return w, nil
}

// assemble attaches the root file system and everything mounted in it.
func (w *Walls) assemble(tree, staging int, sources []*source) error {
	if err := unix.MoveMount(tree, "", staging, rootfsDir[1:], unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach root file system: %w", err)
	}
	recursive := false
	for i, s := range sources {
		if s == nil {
			continue
		}
		m := w.cfg.Mounts[i]
		if err := s.attach(tree, m.Destination); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
		if filepath.Clean(m.Destination) == "/dev" && m.Type == "tmpfs" {
			if err := makeDevices(s.fd); err != nil {
				return fmt.Errorf("mount at %s: %w", m.Destination, err)
			}
		}
		for _, o := range m.Options {
			recursive = recursive || o == "rbind"
		}
		unix.Close(s.fd)
	}
	if recursive {
		if err := detachKernelFilesystems(filepath.Join(w.cfg.Base, rootfsDir)); err != nil {
			return err
		}
	}
	if w.cfg.Cwd != "" {
		cwd, err := makeTarget(tree, w.cfg.Cwd, true)
		if err != nil {
			return fmt.Errorf("cwd %s: %w", w.cfg.Cwd, err)
		}
		defer unix.Close(cwd)
		var st unix.Stat_t
		if err := unix.Fstat(cwd, &st); err != nil {
			return fmt.Errorf("cwd %s: %w", w.cfg.Cwd, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fmt.Errorf("cwd %s: %w", w.cfg.Cwd, unix.ENOTDIR)
		}
	}
	if w.cfg.Readonly {
		ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &ro); err != nil {
			return fmt.Errorf("make root file system read-only: %w", err)
		}
	}
	rootfs, err := unix.Openat(tree, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	w.rootfs = rootfs
	return nil
}

// pivot makes the mount root the root, and lets go of the old one.
func pivot(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter staging root: %w", err)
	}
	// The old root ends up on top of the new one, where "." finds it:
	// pivot_root(2), NOTES.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	return unix.Chdir("/")
}

// Open opens path of the container's root file system with the given open(2)
// flags, as if that were the process's root already.
func (w *Walls) Open(path string, flags int) (*os.File, error) {
	fd, err := openInRoot(w.rootfs, path, uint64(flags))
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Detached makes a mount of the directory dir that is attached nowhere, to be
// handed to a process for [Walls.Attach]: a process cannot make one of a
// directory of another mount namespace. Nothing in it can be executed.
func Detached(dir *os.File, readonly bool) (*os.File, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, &os.PathError{Op: "detach", Path: dir.Name(), Err: needsKernel(err)}
	}
	tree := os.NewFile(uintptr(fd), dir.Name())
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if readonly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		tree.Close()
		return nil, &os.PathError{Op: "detach", Path: dir.Name(), Err: needsKernel(err)}
	}
	return tree, nil
}

// Attach puts tree, of [Detached], at [Attached]. It must come before
// [Walls.Drop].
func (w *Walls) Attach(tree *os.File) error {
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, attachedDir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach directory: %w", err)
	}
	return nil
}

// Enter makes the container's root file system the root of the process and
// gives up the capability that took. From here on the process has nothing that
// its guest cannot use.
func (w *Walls) Enter() error {
	if w.rootfs < 0 {
		return errors.New("enter: no root file system")
	}
	if err := unix.Chroot(rootfsDir); err != nil {
		return fmt.Errorf("enter root file system: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root file system: %w", err)
	}
	unix.Close(w.rootfs)
	return setCapabilities(guestCapabilities(w.cfg.Capabilities))
}

// setLimits needs the host's procfs, and privileges.
func (w *Walls) setLimits() error {
	if adj := w.cfg.OOMScoreAdj; adj != nil {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*adj)), 0); err != nil {
			return fmt.Errorf("oomScoreAdj %d: %w", *adj, err)
		}
	}
	for _, l := range w.cfg.Rlimits {
		resource, ok := rlimits[l.Type]
		if !ok {
			return fmt.Errorf("rlimit %s: unknown", l.Type)
		}
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return fmt.Errorf("rlimit %s: %w", l.Type, err)
		}
	}
	return nil
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func (w *Walls) setNames() error {
	if w.cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(w.cfg.Hostname)); err != nil {
			return fmt.Errorf("hostname %s: %w", w.cfg.Hostname, err)
		}
	}
	if w.cfg.Domainname != "" {
		if err := unix.Setdomainname([]byte(w.cfg.Domainname)); err != nil {
			return fmt.Errorf("domainname %s: %w", w.cfg.Domainname, err)
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
