package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fscommon"
)

// MemoryLimit is how much memory the cgroup may have, bytes; 0 is no limit. It is
// what the kernel says, whichever way it was set.
func (c *Cgroup) MemoryLimit() (uint64, error) {
	limit, err := c.figure("memory", "memory.limit_in_bytes", "memory.max")
	if limit > math.MaxInt64/2 { // version 1 has no "max" but as many pages as there could be
		return 0, err
	}
	return limit, err
}

// PidsLimit is how many processes and threads the cgroup may have; 0 is no limit.
func (c *Cgroup) PidsLimit() (uint64, error) {
	limit, err := c.figure("pids", "pids.max", "pids.max")
	if limit == math.MaxUint64 {
		return 0, err
	}
	return limit, err
}

// PidsRefused is how often the limit of processes and threads has been in the way
// of another one.
func (c *Cgroup) PidsRefused() (uint64, error) {
	return ignoreMissing(fscommon.GetValueByKey(c.dir("pids"), "pids.events", "max"))
}

// dir is where the files of a subsystem are.
func (c *Cgroup) dir(subsystem string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cgroups.IsCgroup2UnifiedMode() {
		subsystem = ""
	}
	return c.manager.Path(subsystem)
}

// figure is the number in a file of the cgroup; 0 without the subsystem.
func (c *Cgroup) figure(subsystem, v1, v2 string) (uint64, error) {
	file := v1
	if cgroups.IsCgroup2UnifiedMode() {
		file = v2
	}
	dir := c.dir(subsystem)
	if dir == "" {
		return 0, nil
	}
	return ignoreMissing(fscommon.GetCgroupParamUint(dir, file))
}

func ignoreMissing(n uint64, err error) (uint64, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cgroup: %w", err)
	}
	return n, nil
}
