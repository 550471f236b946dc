// Package cgroup makes the cgroup of a container. It is apart from package
// sandbox because an instance process, which uses that, has no use for this and
// need not start it.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, for the managers below
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
)

// Cgroup is the cgroup of one container.
type Cgroup struct {
	manager cgroups.Manager
	config  *cgroups.Cgroup
	ours    bool // there is something to remove
}

// New finds the cgroup of the container id: the one at path, of the OCI
// specification's cgroupsPath, or one named after the container. It makes nothing
// yet.
func New(path, id string, limits *specs.LinuxResources) (*Cgroup, error) {
	config := &cgroups.Cgroup{Resources: &cgroups.Resources{}}
	if path != "" {
		config.Path = filepath.Clean("/" + path) // lexically, so that no ".." is left
	}
	if limits != nil {
		r, err := resources(limits)
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		config.Resources = r
	}
	if config.Path == "" {
		config.Name = id
	}
	for _, d := range sandbox.Devices {
		config.Devices = append(config.Devices, &devices.Rule{
			Type: devices.CharDevice, Major: int64(d.Major), Minor: int64(d.Minor), Permissions: "rwm", Allow: true,
		})
	}
	m, err := manager.New(config)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return &Cgroup{manager: m, config: config}, nil
}

// Create makes the cgroup, with its limits. One that has processes already is
// somebody else's: an error.
func (c *Cgroup) Create() error {
	pids, err := c.manager.GetAllPids()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	if len(pids) > 0 {
		return fmt.Errorf("cgroup %s: in use by process %d", c.config.Path, pids[0])
	}
	c.ours = true
	if err := c.manager.Apply(-1); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	// All limits before any process: while the rules of version 1 are written one
	// by one, those in between would be in force.
	if err := c.manager.Set(c.config.Resources); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// StartIn runs start, which starts a process with attr, so that the process is
// born in the cgroup. The goroutine must be locked to its thread.
//
// On version 1 the thread itself goes into the cgroup and comes back. Moving a
// running process there costs 8 ms, a grace period for every thread on the
// machine; a thread that moves itself, as a new process, needs none.
//
// When the thread cannot come back, StartIn panics: it would hold up the removal
// of the cgroup for good.
func (c *Cgroup) StartIn(attr *syscall.SysProcAttr, start func() error) error {
	for subsystem, path := range c.manager.GetPaths() {
		if subsystem == "" { // version 2, which may be there beside version 1
			dir, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
			defer dir.Close()
			attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
			continue
		}
		back, err := ownCgroup(subsystem)
		if err != nil {
			return err
		}
		if err := moveThread(path); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		defer func() {
			if err := moveThread(back); err != nil {
				panic(fmt.Sprintf("back to own cgroup: %v", err))
			}
		}()
	}
	return start()
}

// home has the directories of this process's own cgroups of version 1, by
// subsystem. They are looked up once: that reads the mount table.
var home = struct {
	sync.Mutex
	paths map[string]string // guarded by the mutex
}{paths: map[string]string{}}

func ownCgroup(subsystem string) (string, error) {
	home.Lock()
	defer home.Unlock()
	if path, ok := home.paths[subsystem]; ok {
		return path, nil
	}
	path, err := cgroups.GetOwnCgroupPath(subsystem)
	if err != nil {
		return "", fmt.Errorf("own cgroup: %w", err)
	}
	home.paths[subsystem] = path
	return path, nil
}

// moveThread moves the calling thread. The kernel takes 0 for it, and only then
// leaves the rest of the machine alone.
func moveThread(cgroup string) error { return cgroups.WriteFile(cgroup, "tasks", "0") }

// Adopt takes over a cgroup whose maker is gone, and kills every process in it.
func (c *Cgroup) Adopt() error {
	c.ours = true
	pids, err := c.manager.GetAllPids()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// Destroy removes the cgroup that Create made or Adopt took over. A process that
// is on its way out holds it up for a moment, which Destroy waits for.
func (c *Cgroup) Destroy() error {
	if !c.ours {
		return nil
	}
	if err := c.manager.Destroy(); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}
