package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// NewShared finds a cgroup that several processes of this program use at the same time:
// one by that name, at the root of the hierarchy, or a scope where systemd runs the
// machine and thus owns that. It makes nothing yet.
//
// The processes see to it among themselves that [Cgroup.Share] and [Cgroup.Unshare] are
// called by one at a time.
func NewShared(name string, limits *specs.LinuxResources) (*Cgroup, error) {
	path := "/" + name
	if systemd.IsRunningSystemd() {
		path = ":" + scopePrefix + ":" + strings.TrimPrefix(name, scopePrefix+"-")
	}
	return New(path, name, limits, false)
}

// Share makes the cgroup, unless another has or a crash has left it, and sets its limits.
func (c *Cgroup) Share() (err error) {
	pid := -1
	if c.config.Systemd {
		if c.keeper, err = c.findKeeper(); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if c.keeper == nil {
			if c.keeper, err = startKeeper(); err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
			pid = c.keeper.Pid
		}
	}
	if !c.config.Systemd || pid > 0 {
		if err := c.manager.Apply(pid); err != nil {
			if pid > 0 {
				_ = c.keeper.Kill() // the error at hand says more
			}
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	// More may be in use than a limit that was lowered: then the old one holds.
	if err := c.set(c.config.Resources); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// findKeeper is the keeper of a scope that is there, or nil.
func (c *Cgroup) findKeeper() (*keeper, error) {
	pids, err := c.manager.GetAllPids()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, pid := range pids {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && string(bytes.TrimRight(name, "\x00")) == keeperName {
			p, err := os.FindProcess(pid)
			return &keeper{p}, err
		}
	}
	return nil, nil
}

// Unshare removes the cgroup, with what a crash may have left in it. There need not be any.
func (c *Cgroup) Unshare() (err error) {
	there := false
	for _, path := range c.Paths() {
		there = there || cgroups.PathExists(path)
	}
	if !there {
		return nil
	}
	c.ours = true
	if c.config.Systemd {
		if c.keeper, err = c.findKeeper(); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	pids, err := c.Pids()
	if len(pids) > 0 {
		err = errors.Join(err, c.Kill())
	}
	return errors.Join(err, c.Destroy())
}
