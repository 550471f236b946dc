package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

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

// Namespaces are those a process is started in.
type Namespaces struct {
	flags uintptr            // created with the process
	paths map[uintptr]string // joined by the thread that starts it
}

// NewNamespaces reads the namespaces of an OCI specification. The mount
// namespace is always a new one, asked for or not: the walls are built in it.
//
// A type that is named twice, an unknown type, a user or time namespace and a
// mount or cgroup namespace by path are errors.
func NewNamespaces(spec []specs.LinuxNamespace) (Namespaces, error) {
	ns := Namespaces{flags: unix.CLONE_NEWNS, paths: map[uintptr]string{}}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range spec {
		flag, ok := namespaceFlags[n.Type]
		switch {
		case !ok:
			return ns, fmt.Errorf("%s namespace: not supported for wasm containers", n.Type)
		case seen[n.Type]:
			return ns, fmt.Errorf("%s namespace: given twice", n.Type)
		case n.Path == "":
			ns.flags |= flag
		case flag == unix.CLONE_NEWNS || flag == unix.CLONE_NEWCGROUP:
			return ns, fmt.Errorf("%s namespace: cannot be joined by path (%s)", n.Type, n.Path)
		default:
			ns.paths[flag] = n.Path
		}
		seen[n.Type] = true
	}
	return ns, nil
}

// Has tells whether a process of these namespaces has one of type t that is not
// the starting process's own.
func (ns Namespaces) Has(t specs.LinuxNamespaceType) bool {
	flag := namespaceFlags[t]
	_, joined := ns.paths[flag]
	return joined || ns.flags&flag != 0
}

// SysProcAttr has the clone flags for a process of these namespaces.
func (ns Namespaces) SysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: ns.flags}
}

// Join runs start with the calling thread in the namespaces given by path, and
// takes the thread back afterwards. The goroutine must be locked to its thread.
//
// When the thread cannot be taken back, Join panics: no code of this process may
// go on in a container's namespace.
func (ns Namespaces) Join(start func() error) (err error) {
	for flag, path := range ns.paths {
		back, err := enter(flag, path)
		if err != nil {
			return err
		}
		defer back()
	}
	return start()
}

func enter(flag uintptr, path string) (back func(), err error) {
	own, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), namespaceFile(flag)))
	if err != nil {
		return nil, fmt.Errorf("own namespace: %w", err)
	}
	target, err := os.Open(path)
	if err != nil {
		own.Close()
		return nil, fmt.Errorf("join namespace: %w", err)
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), int(flag)); err != nil {
		own.Close()
		if errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("join namespace %s: not a namespace of type %s", path, namespaceFile(flag))
		}
		return nil, fmt.Errorf("join namespace %s: %w", path, err)
	}
	return func() {
		defer own.Close()
		if err := unix.Setns(int(own.Fd()), int(flag)); err != nil {
			panic(fmt.Sprintf("leave namespace %s: %v", path, err))
		}
		runtime.KeepAlive(own)
	}, nil
}

// namespaceFile is the file of /proc/<pid>/ns for a namespace; the pid
// namespace of a thread's children is not its own.
func namespaceFile(flag uintptr) string {
	switch flag {
	case unix.CLONE_NEWIPC:
		return "ipc"
	case unix.CLONE_NEWNET:
		return "net"
	case unix.CLONE_NEWPID:
		return "pid_for_children"
	case unix.CLONE_NEWUTS:
		return "uts"
	}
	panic(fmt.Sprintf("no namespace file for %#x", flag))
}
