package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

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
