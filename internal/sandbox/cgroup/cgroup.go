// Package cgroup makes the cgroup of a container. It is apart from package
// sandbox because an instance process, which uses that, has no use for this and
// need not start it.
package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, for the managers below
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
)

// Cgroup is the cgroup of one container: of version 1 or 2, and made by ourselves
// or, as a scope, by systemd. Once it is created its methods may be called at the
// same time.
type Cgroup struct {
	manager cgroups.Manager
	name    string
	ours    bool    // there is something to remove
	keeper  *keeper // nil without systemd

	mu       sync.Mutex      // also held while a thread of this process is in the cgroup
	config   *cgroups.Cgroup // its Resources are guarded by mu
	oomKills uint64          // guarded by mu; those that have been told
}

// New finds the cgroup of the container id: the one at path, of the OCI
// specification's cgroupsPath, or one named after the container. It is systemd's
// where that is asked for or the path has the shape that systemd's driver takes,
// `slice:prefix:name`. It makes nothing yet.
func New(path, id string, limits *specs.LinuxResources, systemd bool) (*Cgroup, error) {
	config := &cgroups.Cgroup{Resources: &cgroups.Resources{}}
	switch {
	case systemd || IsScope(path):
		if err := scope(config, path, id); err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
	case path != "":
		config.Path = filepath.Clean("/" + path) // lexically, so that no ".." is left
		if config.Path == "/" || strings.Contains(path, "\x00") {
			return nil, fmt.Errorf("cgroup %q: not a path below the root of all", path) // which has every process of the machine
		}
	default:
		config.Name = id
	}
	if limits != nil {
		r, err := resources(limits)
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		config.Resources = r
	}
	for _, d := range sandbox.Devices {
		config.Devices = append(config.Devices, &devices.Rule{
			Type: devices.CharDevice, Major: d.Major, Minor: d.Minor, Permissions: "rwm", Allow: true,
		})
	}
	name := path
	if name == "" {
		name = id
	}
	paths, err := pathsOf(config)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", name, err)
	}
	m, err := manager.NewWithPaths(config, paths)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", name, err)
	}
	return &Cgroup{manager: m, name: name, config: config}, nil
}

// hierarchies has the directories of the hierarchies of version 1, by subsystem. They are
// looked up once: the library follows the links of every path to each of them.
var hierarchies = struct {
	sync.Mutex
	paths map[string]string // guarded by the mutex; nil until known
}{}

// pathsOf are the directories of a cgroup of version 1 below the root of all; nil has the
// library look for those of any other.
func pathsOf(config *cgroups.Cgroup) (map[string]string, error) {
	if config.Path == "" || config.Systemd || cgroups.IsCgroup2UnifiedMode() {
		return nil, nil
	}
	hierarchies.Lock()
	defer hierarchies.Unlock()
	if hierarchies.paths == nil {
		root, err := manager.New(&cgroups.Cgroup{Path: "/", Resources: &cgroups.Resources{}})
		if err != nil {
			return nil, err
		}
		hierarchies.paths = root.GetPaths()
	}
	paths := map[string]string{}
	for subsystem, dir := range hierarchies.paths {
		paths[subsystem] = filepath.Join(dir, config.Path)
	}
	return paths, nil
}

// Create makes the cgroup, with its limits. One that has processes already is
// somebody else's: an error.
func (c *Cgroup) Create() error {
	pids, err := c.manager.GetAllPids()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	if len(pids) > 0 {
		return fmt.Errorf("cgroup %s: in use by process %d", c.name, pids[0])
	}
	c.ours = true
	pid := -1
	if c.config.Systemd {
		if c.keeper, err = startKeeper(); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		pid = c.keeper.Pid
	}
	if err := c.manager.Apply(pid); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	// All limits before any process: while the rules of version 1 are written one
	// by one, those in between would be in force.
	if err := c.set(c.config.Resources); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// setting is held while limits are set: the library finds out what the files of
// the block controller are called as it sets the first one, and keeps that in a
// variable which it does not guard.
var setting sync.Mutex

func (c *Cgroup) set(r *cgroups.Resources) error {
	setting.Lock()
	defer setting.Unlock()
	return c.manager.Set(r)
}

// StartIn runs start, which starts a process with attr, so that the process is
// born in the cgroup. The goroutine must be locked to its thread.
//
// On version 1 the thread itself goes into the cgroup and comes back. Moving a
// running process there costs 8 ms, a grace period for every thread on the
// machine; a thread that moves itself, as a new process, needs none.
//
// When the thread cannot come back, StartIn fails though start may not have: the
// thread must be ended, or would hold up the removal of the cgroup for good.
func (c *Cgroup) StartIn(attr *syscall.SysProcAttr, start func() error) (failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.config.Freezer == cgroups.Frozen {
		return fmt.Errorf("cgroup %s: frozen", c.name) // so would be the thread
	}
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
		own, err := ownCgroup(subsystem)
		if err != nil {
			return err
		}
		back, err := cgroups.OpenFile(own, "tasks", os.O_WRONLY) // now: the way back needs nothing more
		if err != nil {
			return fmt.Errorf("own cgroup: %w", err)
		}
		defer back.Close()
		if err := moveThread(path); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		defer func() {
			if _, err := back.WriteString("0"); err != nil {
				failed = errors.Join(failed, fmt.Errorf("back to own cgroup: %w", err))
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

// freezingTime bounds how long Freeze tries.
const freezingTime = 5 * time.Second

// Freeze stops every process in the cgroup where it is. It returns when all have
// stopped.
func (c *Cgroup) Freeze() error {
	// Each has to run once more to stop. On version 1 the library looks a thousand
	// times, without a wait, which on a busy machine is over before that.
	for deadline := time.Now().Add(freezingTime); ; time.Sleep(10 * time.Millisecond) {
		err := c.freezer(cgroups.Frozen)
		if err == nil || errors.Is(err, os.ErrNotExist) || time.Now().After(deadline) {
			return err
		}
	}
}

// Thaw lets the processes go on.
func (c *Cgroup) Thaw() error { return c.freezer(cgroups.Thawed) }

func (c *Cgroup) freezer(state cgroups.FreezerState) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.manager.Freeze(state); err != nil {
		return fmt.Errorf("cgroup %s: %s: %w", c.name, state, err)
	}
	return nil
}

// Pids are the processes in the cgroup, those below it among them.
func (c *Cgroup) Pids() ([]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pidsLocked()
}

func (c *Cgroup) pidsLocked() ([]int, error) {
	pids, err := c.manager.GetAllPids()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return slices.DeleteFunc(pids, func(pid int) bool { return c.keeper != nil && pid == c.keeper.Pid }), nil
}

// Paths are the directories of the cgroup, by subsystem; that of version 2 has no
// name, and may be there beside version 1.
func (c *Cgroup) Paths() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.manager.GetPaths())
}

// OOMKills is how often the kernel has killed a process in the cgroup for want of
// memory.
func (c *Cgroup) OOMKills() (uint64, error) {
	n, err := c.manager.OOMKillCount()
	if err != nil {
		return 0, fmt.Errorf("cgroup: %w", err)
	}
	return n, nil
}

// NewOOMKills is what OOMKills has grown by since NewOOMKills was last called.
// The kernel counts before it kills: who has seen the exit sees the count.
func (c *Cgroup) NewOOMKills() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.OOMKills()
	if err != nil {
		return 0, err
	}
	more := n - c.oomKills
	c.oomKills = n
	return more, nil
}

// Kill kills every process in the cgroup, frozen or not.
func (c *Cgroup) Kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if dir := c.manager.Path(""); cgroups.IsCgroup2UnifiedMode() && c.keeper == nil {
		err := cgroups.WriteFile(dir, "cgroup.kill", "1")
		switch {
		case err == nil, !cgroups.PathExists(dir):
			return nil
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission): // that was Linux before 5.14
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	// Frozen meanwhile, so that none starts another that is not in the list.
	// Version 1 has a process die only when it is thawed.
	_ = c.manager.Freeze(cgroups.Frozen) // without it, as good as can be
	pids, err := c.pidsLocked()
	errs := []error{err}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	if cgroups.PathExists(c.manager.Path("freezer")) {
		errs = append(errs, c.manager.Freeze(cgroups.Thawed))
	}
	return errors.Join(errs...)
}

// Adopt takes over a cgroup whose maker is gone, and kills every process in it if
// they are that maker's: it may have found the cgroup in use.
func (c *Cgroup) Adopt(kill bool) error {
	c.ours = true
	if !kill {
		return nil
	}
	return c.Kill()
}

// Destroy removes the cgroup that Create made or Adopt took over. A process that
// is on its way out holds it up for a moment, which Destroy waits for.
func (c *Cgroup) Destroy() error {
	if !c.ours {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keeper != nil {
		_ = c.keeper.Kill() // gone already, when this is a second try
	}
	if err := c.manager.Destroy(); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}
