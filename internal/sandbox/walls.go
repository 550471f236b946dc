//go:build !nowalls

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The staging root has these two directories and nothing else.
const (
	// Rootfs is where the container's root file system is before [Walls.Enter].
	Rootfs = "/rootfs"
	// Attached is where [Walls.Attach] puts a directory, until then.
	Attached = "/attached"
)

// Walls are the walls of one process while they are being built. Its methods are
// for one caller at a time.
type Walls struct {
	cfg    Config
	thread *thread // in the namespaces below
	mnt    *os.File
	uts    *os.File // nil: the host's
	// The three are -1 until there is one.
	staging int // the mount of the staging root
	tree    int // the mount of the container's root file system
	rootfs  int // O_PATH of the container's root, mounts and all
}

// NewWalls makes the mount namespace, and the UTS namespace where cfg asks for
// one. [Walls.Close] must be called in any case.
func NewWalls(cfg Config) (*Walls, error) {
	w := &Walls{cfg: cfg, thread: newThread(), staging: -1, tree: -1, rootfs: -1}
	if err := w.thread.do(w.unshare); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Walls) unshare() (err error) {
	ns := w.cfg.Namespaces
	if path := ns.paths[unix.CLONE_NEWUTS]; path != "" {
		if w.uts, err = os.Open(path); err != nil {
			return fmt.Errorf("join namespace: %w", err)
		}
		if err := join(unix.CLONE_NEWUTS, w.uts); err != nil {
			return err
		}
	}
	if err := unix.Unshare(int(unix.CLONE_NEWNS | ns.flags&unix.CLONE_NEWUTS)); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	// Nothing mounted here may reach the host; what the host unmounts may go here too.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if w.mnt, err = openNamespace(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if w.uts == nil && ns.Has(specs.UTSNamespace) {
		if w.uts, err = openNamespace(unix.CLONE_NEWUTS); err != nil {
			return err
		}
	}
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

// A Birthplace is where a process is started, other than in namespaces: a
// cgroup. StartIn runs start, which starts a process with attr, on the thread it
// is called on.
type Birthplace interface {
	StartIn(attr *syscall.SysProcAttr, start func() error) error
}

// Start has start, which starts a process with attr, run on a thread made for it,
// so that the process is born in the namespaces and in place, with the labels, the
// user and the capabilities it is to have. Place may be nil. The caller must call
// [Parent.Close] once the process has exited.
//
// It has the files of the host until [Walls.Build]. There may be a process, for the
// caller to end, when Start fails.
func (w *Walls) Start(place Birthplace, attr *syscall.SysProcAttr, start func() error) (*Parent, error) {
	ns := w.cfg.Namespaces
	attr.Cloneflags = ns.flags &^ (unix.CLONE_NEWNS | unix.CLONE_NEWUTS)
	if err := setCredentials(attr, w.cfg); err != nil {
		return nil, err
	}
	p := &Parent{newThread()}
	err := p.thread.do(func() error {
		if err := confine(); err != nil {
			return err
		}
		if err := w.cfg.inherit(); err != nil {
			return err
		}
		inNamespaces := func() error {
			for flag, path := range ns.paths {
				if flag == unix.CLONE_NEWUTS || flag == unix.CLONE_NEWNS {
					continue // by way of w.uts and w.mnt
				}
				if err := joinPath(flag, path); err != nil {
					return err
				}
			}
			if w.uts != nil {
				if err := join(unix.CLONE_NEWUTS, w.uts); err != nil {
					return err
				}
			}
			// Last: the paths above are the host's.
			if err := join(unix.CLONE_NEWNS, w.mnt); err != nil {
				return err
			}
			return start()
		}
		if place == nil {
			return inNamespaces()
		}
		return place.StartIn(attr, inNamespaces)
	})
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Limit sets the resource limits and the scheduling of the process with the given
// pid, and the kernel parameters of its namespaces.
func (w *Walls) Limit(pid int) error {
	if err := w.cfg.Labels.verify(pid); err != nil {
		return err
	}
	if err := setLimits(pid, w.cfg); err != nil {
		return err
	}
	if err := w.cfg.Scheduling.set(pid); err != nil {
		return err
	}
	return setSysctls(pid, w.cfg.Sysctl)
}

// Build makes the mounts, and takes the host's files away from the process. In
// between it calls hooks, unless that is nil: the container's root file system is
// then at its path of the host, to be seen in the namespaces of the process.
func (w *Walls) Build(hooks func() error) error {
	if err := w.thread.do(func() error { return w.mount(hooks != nil) }); err != nil {
		return err
	}
	if hooks != nil {
		if err := hooks(); err != nil {
			return err
		}
	}
	return w.thread.do(func() error { return w.leaveHost(hooks != nil) })
}

// RunHook has start, which starts a process, run on the thread that builds the
// walls, in all namespaces of the process pid. It is for use while Build calls
// hooks, and leaves the thread there: what it does after has to do with mounts only.
func (w *Walls) RunHook(pid int, start func() error) error {
	of := NamespacesOf(pid)
	return w.thread.do(func() error {
		for flag, path := range of.paths {
			if flag == unix.CLONE_NEWNS || flag == unix.CLONE_NEWUTS {
				continue // the thread's own
			}
			if err := joinPath(flag, path); err != nil {
				return err
			}
		}
		return start()
	})
}

// mount makes the mounts of the container's root file system, in the staging root
// or, for hooks, where the host has it.
func (w *Walls) mount(forHooks bool) (err error) {
	cfg := w.cfg
	if w.staging, err = newFilesystem("tmpfs", "staging", append([]string{"mode=0555", "size=64k"}, cfg.Labels.mountOptions()...)); err != nil {
		return needsKernel(err)
	}
	for _, dir := range []string{Rootfs, Attached} {
		if err := unix.Mkdirat(w.staging, dir[1:], 0o755); err != nil {
			return fmt.Errorf("staging root: %w", err)
		}
	}
	if cfg.Rootfs == "" {
		return nil
	}
	if w.tree, err = w.cloneRootfs(); err != nil {
		return err
	}
	private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(w.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &private); err != nil {
		return fmt.Errorf("make root file system private: %w", needsKernel(err))
	}
	back, err := cfg.IDs.makeFilesAs()
	if err != nil {
		return err
	}
	defer back()
	// Every source is opened before the new root covers any of the host's paths.
	sources := make([]*source, len(cfg.Mounts))
	defer func() {
		for _, s := range sources {
			if s != nil {
				unix.Close(s.fd)
			}
		}
	}()
	for i, m := range cfg.Mounts {
		if sources[i], err = openSource(m, cfg); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
	}
	if forHooks {
		err = unix.MoveMount(w.tree, "", unix.AT_FDCWD, cfg.Rootfs, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err != nil {
			return fmt.Errorf("attach root file system: %w", err)
		}
	} else if err := w.stage(); err != nil {
		return err
	}
	return w.assemble(sources)
}

// stage puts the staging root over the host's path for it, and the root file
// system in it.
func (w *Walls) stage() error {
	if err := unix.MoveMount(w.staging, "", unix.AT_FDCWD, w.cfg.Base, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount staging root: %w", err)
	}
	if w.tree < 0 {
		return nil
	}
	if err := unix.MoveMount(w.tree, "", w.staging, Rootfs[1:], unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach root file system: %w", err)
	}
	return nil
}

// leaveHost makes the staging root the root.
func (w *Walls) leaveHost(hooked bool) error {
	if hooked || w.tree < 0 {
		if err := w.stage(); err != nil {
			return err
		}
	}
	if w.tree >= 0 {
		if err := w.finish(hooked); err != nil {
			return err
		}
	}
	return pivot(w.staging)
}

// cloneRootfs clones the root file system with what is mounted in it: in the
// mount namespace where it is mounted, which is the one place the kernel allows.
func (w *Walls) cloneRootfs() (tree int, err error) {
	clone := func() error {
		tree, err = unix.OpenTree(unix.AT_FDCWD, w.cfg.Rootfs, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return &os.PathError{Op: "open root file system", Path: w.cfg.Rootfs, Err: needsKernel(err)}
		}
		return nil
	}
	path := w.cfg.Namespaces.paths[unix.CLONE_NEWNS]
	if path == "" {
		return tree, clone()
	}
	t := newThread()
	defer t.close()
	return tree, t.do(func() error {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("join namespace: %w", err)
		}
		defer f.Close()
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // else the whole shim would move along
			return fmt.Errorf("unshare: %w", err)
		}
		if err := join(unix.CLONE_NEWNS, f); err != nil {
			return err
		}
		return clone()
	})
}

// assemble attaches everything that is mounted in the root file system.
func (w *Walls) assemble(sources []*source) error {
	for i, s := range sources {
		if s == nil {
			continue
		}
		m := w.cfg.Mounts[i]
		if err := s.attach(w.tree, m.Destination); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
		if filepath.Clean(m.Destination) == "/dev" && m.Type == "tmpfs" {
			if err := makeDevices(s.fd); err != nil {
				return fmt.Errorf("mount at %s: %w", m.Destination, err)
			}
		}
	}
	for _, d := range w.cfg.Devices {
		if err := makeDevice(w.tree, d, w.cfg.IDs); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return nil
}

// finish is what must come after hooks, which may have mounted or made something.
func (w *Walls) finish(hooked bool) error {
	recursive := hooked
	for _, m := range w.cfg.Mounts {
		recursive = recursive || slices.Contains(m.Options, "rbind")
	}
	if recursive {
		if err := detachKernelFilesystems(filepath.Join(w.cfg.Base, Rootfs)); err != nil {
			return err
		}
	}
	for _, path := range w.cfg.MaskedPaths {
		if err := cover(w.tree, path, openNothing); err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	for _, path := range w.cfg.ReadonlyPaths {
		if err := cover(w.tree, path, openItself); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	back, err := w.cfg.IDs.makeFilesAs()
	if err != nil {
		return err
	}
	defer back()
	if w.cfg.Cwd != "" {
		open := openInRoot
		if w.cfg.Namespaces.paths[unix.CLONE_NEWNS] == "" {
			open = func(root int, path string, _ uint64) (int, error) { return makeTarget(root, path, true) }
		}
		cwd, err := open(w.tree, w.cfg.Cwd, unix.O_PATH)
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
		if err := unix.MountSetattr(w.tree, "", unix.AT_EMPTY_PATH, &ro); err != nil {
			return fmt.Errorf("make root file system read-only: %w", err)
		}
	}
	rootfs, err := unix.Openat(w.tree, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	w.rootfs = rootfs
	return nil
}

// pivot makes the mount root the root of every process in the calling thread's
// mount namespace that has the thread's own, and lets go of the old one.
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
	return OpenInRoot(w.rootfs, path, flags)
}

// Attach puts the directory dir at [Attached]: read-only, unless the process has
// no root file system and thus nothing else to write to. Nothing in it can be
// executed.
func (w *Walls) Attach(dir *os.File) error {
	// A mount can be cloned in its own namespace only, the caller's; one that is
	// attached nowhere can be moved into any.
	tree, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "attach", Path: dir.Name(), Err: needsKernel(err)}
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if w.rootfs >= 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return &os.PathError{Op: "attach", Path: dir.Name(), Err: needsKernel(err)}
	}
	return w.thread.do(func() error {
		if err := unix.MoveMount(tree, "", unix.AT_FDCWD, Attached, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "attach", Path: dir.Name(), Err: err}
		}
		return nil
	})
}

// Enter makes the container's root file system the root of the process, and
// takes everything else away from it.
func (w *Walls) Enter() error {
	return w.thread.do(func() error {
		if err := pivot(w.rootfs); err != nil {
			return fmt.Errorf("enter root file system: %w", err)
		}
		return nil
	})
}

// Close frees what building the walls took. They stand for as long as their
// process lives.
func (w *Walls) Close() {
	w.thread.close()
	for _, fd := range []int{w.staging, w.tree, w.rootfs} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if w.mnt != nil {
		w.mnt.Close()
	}
	if w.uts != nil {
		w.uts.Close()
	}
}
