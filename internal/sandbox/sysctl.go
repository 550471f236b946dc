package sandbox

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ipcSysctls are the ones of an IPC namespace, besides fs.mqueue's.
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

// sysctlFile is the file of a kernel parameter, below /proc/sys, and the
// namespace that has it. One that belongs to the whole machine is an error.
func sysctlFile(name string) (string, specs.LinuxNamespaceType, error) {
	file := name
	// As sysctl(8) reads it: what comes first is the separator, and the other one
	// is the dot of an interface's name.
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		file = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	switch {
	case !filepath.IsLocal(file) || filepath.Clean(file) != file:
	case strings.HasPrefix(file, "net/"):
		return file, specs.NetworkNamespace, nil
	case strings.HasPrefix(file, "fs/mqueue/"), slices.Contains(ipcSysctls, file):
		return file, specs.IPCNamespace, nil
	case file == "kernel/domainname":
		return file, specs.UTSNamespace, nil
	}
	return "", "", fmt.Errorf("sysctl %s: not one of a container's namespaces", name)
}

// setSysctls sets kernel parameters of the namespaces that the process pid is
// in. The kernel shows a thread those of its own.
func setSysctls(pid int, parameters map[string]string) error {
	if len(parameters) == 0 {
		return nil
	}
	t := newThread()
	defer t.close()
	return t.do(func() error {
		entered := map[specs.LinuxNamespaceType]bool{}
		for _, name := range slices.Sorted(maps.Keys(parameters)) {
			file, namespace, err := sysctlFile(name)
			if err != nil {
				return err
			}
			if !entered[namespace] {
				own, err := enterOther(pid, namespaceFlags[namespace])
				if err != nil {
					return fmt.Errorf("sysctl %s: %w", name, err)
				}
				if own {
					return fmt.Errorf("sysctl %s: not without a %s namespace, it would be the host's", name, namespace)
				}
				entered[namespace] = true
			}
			f, err := os.OpenFile(filepath.Join("/proc/sys", file), os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteString(parameters[name])
				f.Close()
			}
			if err != nil {
				return fmt.Errorf("sysctl %s: %w", name, err)
			}
		}
		return nil
	})
}

// enterOther moves the calling thread into a namespace of the process pid, unless
// it is the thread's own.
func enterOther(pid int, flag uintptr) (own bool, err error) {
	mine, err := openNamespace(flag)
	if err != nil {
		return false, err
	}
	defer mine.Close()
	theirs, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, namespaceFiles[flag]))
	if err != nil {
		return false, err
	}
	defer theirs.Close()
	a, err := mine.Stat()
	if err != nil {
		return false, err
	}
	b, err := theirs.Stat()
	if err != nil {
		return false, err
	}
	if os.SameFile(a, b) {
		return true, nil
	}
	return false, join(flag, theirs)
}
