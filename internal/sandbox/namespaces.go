package sandbox

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var namespaceFlags = map[specs.LinuxNamespaceType]uintptr{
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
}

// namespaceFiles are those of /proc/<pid>/ns for a thread's namespaces; the pid
// namespace of its children is not its own.
var namespaceFiles = map[uintptr]string{
	unix.CLONE_NEWCGROUP: "cgroup",
	unix.CLONE_NEWIPC:    "ipc",
	unix.CLONE_NEWNET:    "net",
	unix.CLONE_NEWNS:     "mnt",
	unix.CLONE_NEWPID:    "pid_for_children",
	unix.CLONE_NEWUTS:    "uts",
}

// Namespaces are those a process is started in.
type Namespaces struct {
	flags uintptr            // made new
	paths map[uintptr]string // joined
}

// NewNamespaces reads the namespaces of an OCI specification. The mount
// namespace is always a new one, asked for or not: the walls are built in it.
//
// A type that is named twice, an unknown type and a mount namespace by path are
// errors. Neither the user nor the time namespace is one of these: see [IDMappings]
// and [TimeOffsets].
func NewNamespaces(spec []specs.LinuxNamespace) (Namespaces, error) {
	ns := Namespaces{flags: unix.CLONE_NEWNS, paths: map[uintptr]string{}}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range spec {
		flag, ok := namespaceFlags[n.Type]
		switch {
		case n.Type == specs.UserNamespace:
		case seen[n.Type]:
			return ns, fmt.Errorf("%s namespace: given twice", n.Type)
		case n.Type == specs.TimeNamespace:
		case !ok:
			return ns, fmt.Errorf("%s namespace: not supported for wasm containers", n.Type)
		case n.Path == "":
			ns.flags |= flag
		case flag == unix.CLONE_NEWNS:
			return ns, fmt.Errorf("%s namespace: cannot be joined by path (%s)", n.Type, n.Path)
		default:
			ns.paths[flag] = n.Path
		}
		seen[n.Type] = true
	}
	return ns, nil
}

// NamespacesOf are those that the process pid is in, but for its mount namespace:
// each process has its own, in which its root is built. This one's is where
// [Config.Rootfs] is a path.
func NamespacesOf(pid int) Namespaces {
	ns := Namespaces{flags: unix.CLONE_NEWNS, paths: map[uintptr]string{}}
	for flag, file := range namespaceFiles {
		ns.paths[flag] = fmt.Sprintf("/proc/%d/ns/%s", pid, file)
	}
	return ns
}

// nsGetNSType is NS_GET_NSTYPE of ioctl_nsfs(2).
const nsGetNSType = 0xb703

// Check looks whether the namespaces that are to be joined are there.
func (ns Namespaces) Check() error {
	for flag, path := range ns.paths {
		// To open something else, a FIFO or a device, might take for ever.
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			return fmt.Errorf("join namespace: %w", &os.PathError{Op: "open", Path: path, Err: err})
		}
		if st.Type != unix.NSFS_MAGIC {
			return notNamespace(flag, path)
		}
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("join namespace: %w", err)
		}
		got, err := unix.IoctlRetInt(int(f.Fd()), nsGetNSType)
		f.Close()
		if err != nil || uintptr(got) != flag {
			return notNamespace(flag, path)
		}
	}
	return nil
}

func notNamespace(flag uintptr, path string) error {
	return fmt.Errorf("join namespace %s: not a %s namespace", path, namespaceFiles[flag])
}

// Has tells whether a process of these namespaces has one of type t that is not
// the starting process's own.
func (ns Namespaces) Has(t specs.LinuxNamespaceType) bool {
	flag := namespaceFlags[t]
	return ns.paths[flag] != "" || ns.flags&flag != 0
}

// openNamespace opens a namespace of the calling thread.
func openNamespace(flag uintptr) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), namespaceFiles[flag]))
	if err != nil {
		return nil, fmt.Errorf("own namespace: %w", err)
	}
	return f, nil
}

// join moves the calling thread into the namespace of file.
func join(flag uintptr, file *os.File) error {
	err := unix.Setns(int(file.Fd()), int(flag))
	if errors.Is(err, unix.EINVAL) {
		return notNamespace(flag, file.Name())
	}
	if err != nil {
		return fmt.Errorf("join namespace %s: %w", file.Name(), err)
	}
	return nil
}

// joinPath is join of the namespace at path.
func joinPath(flag uintptr, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("join namespace: %w", err)
	}
	defer f.Close()
	return join(flag, f)
}

// inMounts runs do on a thread of its own in the mount namespace ns, with the root of
// that.
func inMounts(ns *os.File, do func() error) error {
	t := newThread()
	defer t.close()
	return t.do(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // else the whole shim would move along
			return fmt.Errorf("unshare: %w", err)
		}
		if err := join(unix.CLONE_NEWNS, ns); err != nil {
			return err
		}
		return do()
	})
}
