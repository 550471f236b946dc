package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, for the managers below
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Cgroup is the cgroup of one container.
type Cgroup struct {
	manager cgroups.Manager
	config  *cgroups.Cgroup
	ours    bool // there is something to remove
}

// NewCgroup finds the cgroup that spec names for the container id. It makes
// nothing yet.
func NewCgroup(spec *specs.Spec, id string) (*Cgroup, error) {
	config := &cgroups.Cgroup{Resources: &cgroups.Resources{}}
	if l := spec.Linux; l != nil {
		// Lexically, so that no ".." is left.
		if l.CgroupsPath != "" {
			config.Path = filepath.Clean("/" + l.CgroupsPath)
		}
		if l.Resources != nil {
			r, err := resources(l.Resources)
			if err != nil {
				return nil, fmt.Errorf("cgroup: %w", err)
			}
			config.Resources = r
		}
	}
	if config.Path == "" {
		config.Name = id
	}
	for _, d := range guestDevices {
		config.Devices = append(config.Devices, &devices.Rule{
			Type: devices.CharDevice, Major: int64(d.major), Minor: int64(d.minor), Permissions: "rwm", Allow: true,
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

// Join moves a process into the cgroup.
func (c *Cgroup) Join(pid int) error {
	if err := c.manager.AddPid("", pid); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

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
