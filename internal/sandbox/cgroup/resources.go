package cgroup

import (
	"fmt"
	"maps"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// resources puts the limits of the OCI specification the way the cgroup managers
// take them. Each field is another name for the same thing; runc's own
// conversion needs cgo.
func resources(from *specs.LinuxResources) (*cgroups.Resources, error) {
	r := &cgroups.Resources{Unified: maps.Clone(from.Unified)}
	for i, d := range from.Devices {
		rule, err := deviceRule(d)
		if err != nil {
			return nil, fmt.Errorf("resources.devices[%d]: %w", i, err)
		}
		r.Devices = append(r.Devices, rule)
	}
	if m := from.Memory; m != nil {
		set(&r.Memory, m.Limit)
		set(&r.MemoryReservation, m.Reservation)
		set(&r.MemorySwap, m.Swap)
		set(&r.OomKillDisable, m.DisableOOMKiller)
		set(&r.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
		r.MemorySwappiness = m.Swappiness
	}
	if c := from.CPU; c != nil {
		set(&r.CpuShares, c.Shares)
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(r.CpuShares) // 0 stays 0
		set(&r.CpuQuota, c.Quota)
		set(&r.CpuPeriod, c.Period)
		set(&r.CpuRtRuntime, c.RealtimeRuntime)
		set(&r.CpuRtPeriod, c.RealtimePeriod)
		r.CpuBurst, r.CPUIdle = c.Burst, c.Idle
		r.CpusetCpus, r.CpusetMems = c.Cpus, c.Mems
	}
	if p := from.Pids; p != nil {
		r.PidsLimit = p.Limit
	}
	if b := from.BlockIO; b != nil {
		set(&r.BlkioWeight, b.Weight)
		set(&r.BlkioLeafWeight, b.LeafWeight)
		for _, d := range b.WeightDevice {
			var weight, leaf uint16
			set(&weight, d.Weight)
			set(&leaf, d.LeafWeight)
			r.BlkioWeightDevice = append(r.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf))
		}
		r.BlkioThrottleReadBpsDevice = throttles(b.ThrottleReadBpsDevice)
		r.BlkioThrottleWriteBpsDevice = throttles(b.ThrottleWriteBpsDevice)
		r.BlkioThrottleReadIOPSDevice = throttles(b.ThrottleReadIOPSDevice)
		r.BlkioThrottleWriteIOPSDevice = throttles(b.ThrottleWriteIOPSDevice)
	}
	for _, l := range from.HugepageLimits {
		r.HugetlbLimit = append(r.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: l.Pagesize, Limit: l.Limit})
	}
	if n := from.Network; n != nil {
		set(&r.NetClsClassid, n.ClassID)
		for _, p := range n.Priorities {
			r.NetPrioIfpriomap = append(r.NetPrioIfpriomap, &cgroups.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
		}
	}
	for name, l := range from.Rdma {
		if r.Rdma == nil {
			r.Rdma = map[string]cgroups.LinuxRdma{}
		}
		r.Rdma[name] = cgroups.LinuxRdma{HcaHandles: l.HcaHandles, HcaObjects: l.HcaObjects}
	}
	return r, nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func throttles(from []specs.LinuxThrottleDevice) (to []*cgroups.ThrottleDevice) {
	for _, d := range from {
		to = append(to, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
	}
	return to
}

func deviceRule(d specs.LinuxDeviceCgroup) (*devices.Rule, error) {
	rule := &devices.Rule{
		Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard,
		Permissions: devices.Permissions(d.Access), Allow: d.Allow,
	}
	if d.Access == "" || !rule.Permissions.IsValid() {
		return nil, fmt.Errorf("access %q: want some of r, w and m", d.Access)
	}
	switch d.Type {
	case "", "a":
	case "b", "c":
		rule.Type = devices.Type(d.Type[0])
	default:
		return nil, fmt.Errorf("type %q: want a, b or c", d.Type)
	}
	set(&rule.Major, d.Major)
	set(&rule.Minor, d.Minor)
	return rule, nil
}
