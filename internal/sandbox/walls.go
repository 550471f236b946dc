//go:build !nowalls

package sandbox

import (
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// Rootfs is where the container's root file system is before [Walls.Enter].
	Rootfs = "/rootfs"
	// Attached is where [Walls.Attach] puts a directory, until then.
	Attached = "/attached"
)

// Walls are the walls of one process while they are being built. Its methods are
// for one caller at a time, but that Start and Limit may be called while Build or what
// follows it goes on.
type Walls struct {
	cfg    Config
	stage  *Stage
	thread *thread // in the namespaces below; its root is the host's until Build is done
	mnt    *os.File
	uts    *os.File     // nil: the host's
	parent *Parent      // nil once it has started the process, or tried
	ready  func() error // waits until it is ready for that
	// The three are -1 until there is one.
	staging int // the mount of the staging root, which is the mount namespace's
	tree    int // the mount of the container's root file system
	rootfs  int // O_PATH of the container's root, mounts and all
	// the root file system came with kernel file systems in it
	kernel bool
	// what is mounted for each of cfg.Mounts; nil for what is not
	sources []*source
	// nil where no mount is to be followed
	follower *Follower
	told     func(Step) // of Build
}

// NewWalls makes the mount namespace, whose root is the staging root, and the UTS
// namespace where cfg asks for one. [Walls.Close] must be called in any case.
func NewWalls(s *Stage, cfg Config) (*Walls, error) {
	w := &Walls{cfg: cfg, stage: s, thread: newThread(), staging: -1, tree: -1, rootfs: -1}
	p := &Parent{newThread()}
	w.parent, w.ready = p, sync.OnceValue(func() error { return p.thread.do(w.bear) })
	go func() { _ = w.ready() }() // while the rest is made; Start and Close wait for it
	err := w.thread.do(func() error {
		if err := w.unshare(); err != nil {
			return err
		}
		return w.hideHost()
	})
	if err != nil {
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
// Its root is the staging root, and it gets no descriptor but those that start gives
// it. There may be a process, for the caller to end, when Start fails.
func (w *Walls) Start(place Birthplace, attr *syscall.SysProcAttr, start func() error) (*Parent, error) {
	ns := w.cfg.Namespaces
	attr.Cloneflags = ns.flags &^ (unix.CLONE_NEWNS | unix.CLONE_NEWUTS | early)
	if err := setCredentials(attr, w.cfg); err != nil {
		return nil, err
	}
	if err := w.ready(); err != nil {
		return nil, err
	}
	p := w.parent
	w.parent = nil
	err := p.thread.do(func() error {
		// The shim was started with some open that close on no exec: its socket.
		if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
			return fmt.Errorf("close on exec: %w", err)
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

// early are the namespaces that the thread has before the process does: to make that of
// the network takes longer than all else of a fork, which it would be a part of.
const early = unix.CLONE_NEWNET | unix.CLONE_NEWIPC

// bear makes the calling thread one that may start the process, but for what it has to
// do right before.
func (w *Walls) bear() error {
	if err := confine(); err != nil {
		return err
	}
	flags := w.cfg.Namespaces.flags & early
	if flags == 0 {
		return nil
	}
	if err := unix.Unshare(int(flags)); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	return nil
}

// Program is what the process started by [Walls.Start] has to execute.
func (w *Walls) Program() string { return "/" + w.cfg.Program }

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

// Build makes the mounts, and takes the host's files out of the mount namespace.
// In between it calls hooks, unless that is nil: the container's root file system
// is then at its path of the host, for [Walls.RunHook].
//
// Told, unless it is nil, is told of each [Step].
func (w *Walls) Build(hooks func() error, told func(Step)) (err error) {
	w.told = told
	err = w.step(StepFollow, "", func() error { // not on the thread: these are the host's mounts
		w.follower, err = newFollower(w.cfg)
		return err
	})
	if err != nil {
		return err
	}
	if hooks == nil {
		return w.thread.do(func() error {
			if err := w.mount(false); err != nil {
				return err
			}
			return w.leaveHost(false)
		})
	}
	if err := w.thread.do(func() error { return w.mount(true) }); err != nil {
		return err
	}
	if err := hooks(); err != nil {
		return err
	}
	return w.thread.do(func() error { return w.leaveHost(true) })
}

// step does one step, and tells of it.
func (w *Walls) step(name, path string, do func() error) error {
	began := time.Now()
	err := do()
	if w.told != nil {
		w.told(Step{name, path, began, err})
	}
	return err
}

// RunHook has start, which starts a process, run on the thread that builds the
// walls, in all namespaces of the process pid, with the host's root. It is for use
// while Build calls hooks, and leaves the thread there: what it does after has to do
// with mounts only.
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

// hideHost makes the staging root the root of the mount namespace. The host's
// stays below it for as long as the mounts are being made, where no path leads;
// the thread, and no process, has it for its own root.
func (w *Walls) hideHost() error {
	fail := func(err error) error { return fmt.Errorf("staging root: %w", err) }
	var err error
	if w.staging, err = w.stage.clone(w.mnt); err != nil {
		return fail(err)
	}
	if err := unix.MoveMount(w.staging, "", unix.AT_FDCWD, w.cfg.Base, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(err)
	}
	if err := unix.Fchdir(w.staging); err != nil {
		return fail(err)
	}
	if err := unix.PivotRoot(".", hostBelow[1:]); err != nil {
		return fail(fmt.Errorf("pivot_root: %w", err))
	}
	if err := unix.Chdir(hostBelow); err != nil {
		return fail(err)
	}
	cover, err := unix.OpenTree(unix.AT_FDCWD, Attached, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(cover)
	if err := unix.MoveMount(cover, "", unix.AT_FDCWD, covered, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(err)
	}
	if err := unix.Chroot("."); err != nil {
		return fail(err)
	}
	return nil
}

// mount makes the mounts of the container's root file system, in the staging root
// or, for hooks, where the host has it.
func (w *Walls) mount(forHooks bool) (err error) {
	cfg := w.cfg
	if cfg.Rootfs == "" {
		return nil
	}
	if !w.borrowed() {
		if cfg.kernelMounts, err = listKernelMounts(); err != nil {
			return err
		}
	}
	err = w.step(StepClone, "", func() error {
		w.tree, err = w.cloneRootfs(cfg.kernelMounts)
		return err
	})
	if err != nil {
		return err
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if !w.borrowed() {
		attr.Attr_set = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV // a device is mounted: makeDevice
	}
	if err := unix.MountSetattr(w.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make root file system private: %w", needsKernel(err))
	}
	back, err := cfg.IDs.makeFilesAs()
	if err != nil {
		return err
	}
	defer back()
	// Every source is opened before the new root covers any of the host's paths.
	w.sources = make([]*source, len(cfg.Mounts))
	for i, m := range cfg.Mounts {
		err := w.step(StepMount, m.Destination, func() (err error) {
			w.sources[i], err = openSource(m, cfg)
			return err
		})
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
	}
	if forHooks {
		err = unix.MoveMount(w.tree, "", unix.AT_FDCWD, cfg.Rootfs, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err != nil {
			return fmt.Errorf("attach root file system: %w", err)
		}
	} else if err := w.setRootfs(); err != nil {
		return err
	}
	return w.assemble()
}

// borrowed tells whether the root file system is that of another process, where
// all is made already.
func (w *Walls) borrowed() bool { return w.cfg.Namespaces.paths[unix.CLONE_NEWNS] != "" }

// setRootfs puts the root file system in the staging root.
func (w *Walls) setRootfs() error {
	if err := unix.MoveMount(w.tree, "", w.staging, Rootfs[1:], unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach root file system: %w", err)
	}
	return nil
}

// leaveHost takes the host's root out of the mount namespace.
func (w *Walls) leaveHost(hooked bool) error {
	if hooked && w.tree >= 0 {
		if err := w.setRootfs(); err != nil {
			return err
		}
	}
	if w.tree >= 0 {
		if err := w.step(StepProtect, "", func() error { return w.finish(hooked) }); err != nil {
			return err
		}
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	return chroot(w.staging)
}

// cloneRootfs clones the root file system with what is mounted in it: in the
// mount namespace where it is mounted, which is the one place the kernel allows.
func (w *Walls) cloneRootfs(kernelMounts []string) (tree int, err error) {
	clone := func() (int, error) {
		place, err := unix.Open(w.cfg.Rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, &os.PathError{Op: "open root file system", Path: w.cfg.Rootfs, Err: err}
		}
		defer unix.Close(place)
		if !w.borrowed() { // a container has no procfs to ask
			if w.kernel, err = holdsKernelFilesystem(place, kernelMounts); err != nil {
				return -1, fmt.Errorf("open root file system: %w", err)
			}
		}
		fd, err := unix.OpenTree(place, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
		if err != nil {
			return -1, &os.PathError{Op: "open root file system", Path: w.cfg.Rootfs, Err: needsKernel(err)}
		}
		return fd, nil
	}
	path := w.cfg.Namespaces.paths[unix.CLONE_NEWNS]
	if path == "" {
		return clone()
	}
	ns, err := os.Open(path)
	if err != nil {
		return -1, fmt.Errorf("join namespace: %w", err)
	}
	defer ns.Close()
	tree = -1
	err = inMounts(ns, func() (err error) {
		tree, err = clone()
		return err
	})
	return tree, err
}

// assemble attaches everything that is mounted in the root file system.
func (w *Walls) assemble() error {
	if w.borrowed() {
		return nil
	}
	if w.kernel {
		if err := detachKernelFilesystems(w.tree); err != nil {
			return err
		}
	}
	for i, s := range w.sources {
		if s == nil {
			continue
		}
		dest := w.cfg.Mounts[i].Destination
		err := w.step(StepMount, dest, func() error {
			err := s.attach(w.tree, dest)
			if err == nil && s.dir && s.below {
				// At once: what is mounted next may be meant for a place below.
				err = detachKernelFilesystems(w.tree)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("mount at %s: %w", dest, err)
		}
	}
	return w.step(StepDevices, "", w.makeDevices)
}

// finish is what must come after hooks, which may have mounted or made something.
func (w *Walls) finish(hooked bool) error {
	if hooked {
		if err := detachKernelFilesystems(w.tree); err != nil {
			return err
		}
	}
	if err := w.makeCwd(); err != nil {
		return fmt.Errorf("cwd %s: %w", w.cfg.Cwd, err)
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
	for i, s := range w.sources {
		if s == nil {
			continue
		}
		if err := s.protect(); err != nil {
			return fmt.Errorf("mount at %s: %w", w.cfg.Mounts[i].Destination, err)
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

// makeCwd makes the working directory where the image lacks it.
func (w *Walls) makeCwd() error {
	if w.cfg.Cwd == "" {
		return nil
	}
	back, err := w.cfg.IDs.makeFilesAs()
	if err != nil {
		return err
	}
	defer back()
	var cwd int
	if w.borrowed() {
		cwd, err = openInRoot(w.tree, w.cfg.Cwd, unix.O_PATH)
	} else {
		cwd, _, err = makeTarget(w.tree, w.cfg.Cwd, true)
	}
	if err != nil {
		return err
	}
	defer unix.Close(cwd)
	var st unix.Stat_t
	if err := unix.Fstat(cwd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return nil
}

// Open opens path of the container's root file system with the given open(2)
// flags, as if that were the process's root already.
func (w *Walls) Open(path string, flags int) (*os.File, error) {
	return OpenInRoot(w.rootfs, path, flags)
}

// Attach puts the directory dir at [Attached], read-only. What is in it may be mapped
// to be executed, unless the directory's own file system refuses that: as compiled code
// is.
func (w *Walls) Attach(dir *os.File) error {
	// A mount can be cloned in its own namespace only, the caller's; one that is
	// attached nowhere can be moved into any.
	tree, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "attach", Path: dir.Name(), Err: needsKernel(err)}
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
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

// AttachNew puts an empty directory at [Attached] that is the process's user's: a file
// system in memory, with room for the given number of bytes and files. Nothing in it can
// be executed. What the process leaves there is in the directory that is returned, for as
// long as that is open.
func (w *Walls) AttachNew(bytes uint64, files int) (_ *os.File, err error) {
	fail := func(err error) error { return &os.PathError{Op: "attach", Path: "tmpfs", Err: err} }
	fd, err := newFilesystem("tmpfs", "attached", []string{
		"mode=0700", fmt.Sprintf("uid=%d", w.cfg.User.UID), fmt.Sprintf("gid=%d", w.cfg.User.GID),
		fmt.Sprintf("size=%d", bytes), fmt.Sprintf("nr_inodes=%d", files),
	}, "")
	if err != nil {
		return nil, fail(needsKernel(err))
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, fail(needsKernel(err))
	}
	dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(err)
	}
	err = w.thread.do(func() error {
		return unix.MoveMount(fd, "", unix.AT_FDCWD, Attached, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		unix.Close(dir)
		return nil, fail(err)
	}
	return os.NewFile(uintptr(dir), "attached"), nil
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

// Follower is for the caller to run, once the process is in its root file system;
// nil where the container is to see no mounts of later. Walls.Close closes it, unless it
// has been taken.
func (w *Walls) Follower() *Follower {
	f := w.follower
	w.follower = nil
	return f
}

// Close frees what building the walls took. They stand for as long as their
// process lives.
func (w *Walls) Close() {
	if w.parent != nil {
		_ = w.ready() // only that it has ended counts here
		w.parent.Close()
	}
	w.thread.close()
	if w.follower != nil {
		w.follower.host.Close()
	}
	for _, fd := range []int{w.staging, w.tree, w.rootfs} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	for _, s := range w.sources {
		if s != nil {
			unix.Close(s.fd)
		}
	}
	if w.mnt != nil {
		w.mnt.Close()
	}
	if w.uts != nil {
		w.uts.Close()
	}
}
