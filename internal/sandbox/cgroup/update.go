package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Update changes the limits that are given and leaves the others as they are. It
// heeds what `runc update` does: CPU, memory, the weight of block I/O, the number
// of processes, and unified. When it fails all the old limits are in force.
func (c *Cgroup) Update(limits *specs.LinuxResources) error {
	change, err := resources(&specs.LinuxResources{
		Memory: limits.Memory, CPU: limits.CPU, Pids: limits.Pids, Unified: limits.Unified,
	})
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if limits.BlockIO != nil {
		set(&change.BlkioWeight, limits.BlockIO.Weight)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Rules for devices do not change, and writing them again would, on version 1,
	// put those in between in force.
	c.config.SkipDevices = true
	old := *c.config.Resources
	next := old
	merge(&next, change)
	before := c.limitFiles(change.Unified)
	if err := c.set(&next); err != nil {
		return errors.Join(fmt.Errorf("cgroup: %w", err), c.revert(&old, before))
	}
	*c.config.Resources = next
	return nil
}

// merge puts the limits of change over those of r. Zero and nil are "not given".
func merge(r, change *cgroups.Resources) {
	over(&r.Memory, change.Memory)
	over(&r.MemoryReservation, change.MemoryReservation)
	over(&r.MemorySwap, change.MemorySwap)
	if change.Memory == -1 && change.MemorySwap == 0 { // no less may be had of both together
		r.MemorySwap = -1
	}
	over(&r.MemorySwappiness, change.MemorySwappiness)
	over(&r.OomKillDisable, change.OomKillDisable)
	r.MemoryCheckBeforeUpdate = change.MemoryCheckBeforeUpdate // about this update only
	over(&r.CpuShares, change.CpuShares)
	over(&r.CpuWeight, change.CpuWeight)
	over(&r.CpuQuota, change.CpuQuota)
	over(&r.CpuPeriod, change.CpuPeriod)
	over(&r.CpuBurst, change.CpuBurst)
	over(&r.CPUIdle, change.CPUIdle)
	over(&r.CpuRtRuntime, change.CpuRtRuntime)
	over(&r.CpuRtPeriod, change.CpuRtPeriod)
	over(&r.CpusetCpus, change.CpusetCpus)
	over(&r.CpusetMems, change.CpusetMems)
	over(&r.PidsLimit, change.PidsLimit)
	over(&r.BlkioWeight, change.BlkioWeight)
	if change.Unified != nil {
		r.Unified = maps.Clone(r.Unified)
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		maps.Copy(r.Unified, change.Unified)
	}
}

func over[T comparable](to *T, from T) {
	var none T
	if from != none {
		*to = from
	}
}

// limits are the files that Update may write, by the subsystem of version 1, with
// those of version 2 under no name.
var limits = map[string][]string{
	"": {
		"memory.max", "memory.swap.max", "memory.low", "cpu.weight", "cpu.idle", "cpu.max", "cpu.max.burst",
		"cpuset.cpus", "cpuset.mems", "pids.max", "io.weight", "io.bfq.weight",
	},
	"memory": {
		"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes",
		"memory.swappiness",
	},
	"cpu": {
		"cpu.shares", "cpu.idle", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us",
		"cpu.rt_period_us", "cpu.rt_runtime_us",
	},
	"cpuset": {"cpuset.cpus", "cpuset.mems"},
	"pids":   {"pids.max"},
	"blkio":  {"blkio.weight", "blkio.bfq.weight"},
}

type limitFile struct{ dir, name, content string }

// limitFiles reads what Update may write; those that are not there are left out.
func (c *Cgroup) limitFiles(unified map[string]string) (files []limitFile) {
	for subsystem, dir := range c.manager.GetPaths() {
		names := limits[subsystem]
		if subsystem == "" {
			names = slices.Concat(names, slices.Collect(maps.Keys(unified)))
		}
		for _, name := range names {
			if filepath.Base(name) != name {
				continue // refused
			}
			if content, err := cgroups.ReadFile(dir, name); err == nil {
				files = append(files, limitFile{dir, name, content})
			}
		}
	}
	return files
}

// revert undoes a Set that failed half way: what old says, and, as old need not
// say anything, what was in the files.
func (c *Cgroup) revert(old *cgroups.Resources, before []limitFile) error {
	old.MemoryCheckBeforeUpdate = false
	_ = c.set(old) // what counts is in the files
	var errs []error
	for range 2 { // one limit may have to wait for another, of swap for that of memory
		errs = nil
		for _, f := range before {
			now, err := cgroups.ReadFile(f.dir, f.name)
			if err == nil && now != f.content {
				err = cgroups.WriteFile(f.dir, f.name, f.content)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
				errs = append(errs, fmt.Errorf("restore: %w", err))
			}
		}
		if errs == nil {
			return nil
		}
	}
	return errors.Join(errs...)
}
