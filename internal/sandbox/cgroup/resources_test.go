package cgroup

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestEveryLimitOfTheSpecificationReachesTheCgroup(t *testing.T) {
	yes, swappiness := true, uint64(60)
	burst, idle, pids := uint64(7), int64(1), int64(100)
	handles, objects := uint32(3), uint32(4)
	rule := func(kind devices.Type, major, minor int64, permissions string, allow bool) []*devices.Rule {
		return []*devices.Rule{{Type: kind, Major: major, Minor: minor, Permissions: devices.Permissions(permissions), Allow: allow}}
	}
	throttle := []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 1, 1000)}
	const throttled = `[{"major":8,"minor":1,"rate":1000}]`
	for _, tt := range []struct {
		name, spec string
		want       cgroups.Resources
	}{
		{"none", `{}`, cgroups.Resources{}},
		{"empty sections", `{"memory":{},"cpu":{},"pids":{},"blockIO":{},"network":{}}`, cgroups.Resources{}},

		{"memory.limit", `{"memory":{"limit":1048576}}`, cgroups.Resources{Memory: 1 << 20}},
		{"memory.limit none", `{"memory":{"limit":-1}}`, cgroups.Resources{Memory: -1}},
		{"memory.reservation", `{"memory":{"reservation":5}}`, cgroups.Resources{MemoryReservation: 5}},
		{"memory.swap", `{"memory":{"swap":6}}`, cgroups.Resources{MemorySwap: 6}},
		{"memory.swappiness", `{"memory":{"swappiness":60}}`, cgroups.Resources{MemorySwappiness: &swappiness}},
		{"memory.disableOOMKiller", `{"memory":{"disableOOMKiller":true}}`, cgroups.Resources{OomKillDisable: yes}},
		{"memory.checkBeforeUpdate", `{"memory":{"checkBeforeUpdate":true}}`, cgroups.Resources{MemoryCheckBeforeUpdate: yes}},

		{"cpu.shares, the least", `{"cpu":{"shares":2}}`, cgroups.Resources{CpuShares: 2, CpuWeight: 1}},
		{"cpu.shares, the most", `{"cpu":{"shares":262144}}`, cgroups.Resources{CpuShares: 262144, CpuWeight: 10000}},
		{"cpu.shares, the default", `{"cpu":{"shares":1024}}`, cgroups.Resources{CpuShares: 1024, CpuWeight: 100}},
		{"cpu.quota", `{"cpu":{"quota":50000}}`, cgroups.Resources{CpuQuota: 50000}},
		{"cpu.period", `{"cpu":{"period":100000}}`, cgroups.Resources{CpuPeriod: 100000}},
		{"cpu.burst", `{"cpu":{"burst":7}}`, cgroups.Resources{CpuBurst: &burst}},
		{"cpu.idle", `{"cpu":{"idle":1}}`, cgroups.Resources{CPUIdle: &idle}},
		{"cpu.realtimeRuntime", `{"cpu":{"realtimeRuntime":8}}`, cgroups.Resources{CpuRtRuntime: 8}},
		{"cpu.realtimePeriod", `{"cpu":{"realtimePeriod":9}}`, cgroups.Resources{CpuRtPeriod: 9}},
		{"cpu.cpus", `{"cpu":{"cpus":"0-1"}}`, cgroups.Resources{CpusetCpus: "0-1"}},
		{"cpu.mems", `{"cpu":{"mems":"0"}}`, cgroups.Resources{CpusetMems: "0"}},

		{"pids.limit", `{"pids":{"limit":100}}`, cgroups.Resources{PidsLimit: &pids}},

		{"blockIO.weight", `{"blockIO":{"weight":10}}`, cgroups.Resources{BlkioWeight: 10}},
		{"blockIO.leafWeight", `{"blockIO":{"leafWeight":11}}`, cgroups.Resources{BlkioLeafWeight: 11}},
		{"blockIO.weightDevice", `{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":5,"leafWeight":6},{"major":8,"minor":1}]}}`,
			cgroups.Resources{BlkioWeightDevice: []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 5, 6), cgroups.NewWeightDevice(8, 1, 0, 0)}}},
		{"blockIO.throttleReadBpsDevice", `{"blockIO":{"throttleReadBpsDevice":` + throttled + `}}`, cgroups.Resources{BlkioThrottleReadBpsDevice: throttle}},
		{"blockIO.throttleWriteBpsDevice", `{"blockIO":{"throttleWriteBpsDevice":` + throttled + `}}`, cgroups.Resources{BlkioThrottleWriteBpsDevice: throttle}},
		{"blockIO.throttleReadIOPSDevice", `{"blockIO":{"throttleReadIOPSDevice":` + throttled + `}}`, cgroups.Resources{BlkioThrottleReadIOPSDevice: throttle}},
		{"blockIO.throttleWriteIOPSDevice", `{"blockIO":{"throttleWriteIOPSDevice":` + throttled + `}}`, cgroups.Resources{BlkioThrottleWriteIOPSDevice: throttle}},

		{"hugepageLimits", `{"hugepageLimits":[{"pageSize":"2MB","limit":1},{"pageSize":"1GB","limit":2}]}`,
			cgroups.Resources{HugetlbLimit: []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 1}, {Pagesize: "1GB", Limit: 2}}}},
		{"network.classID", `{"network":{"classID":1048577}}`, cgroups.Resources{NetClsClassid: 1048577}},
		{"network.priorities", `{"network":{"priorities":[{"name":"eth0","priority":500}]}}`,
			cgroups.Resources{NetPrioIfpriomap: []*cgroups.IfPrioMap{{Interface: "eth0", Priority: 500}}}},
		{"rdma", `{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":4},"mlx4_0":{"hcaObjects":4}}}`,
			cgroups.Resources{Rdma: map[string]cgroups.LinuxRdma{"mlx5_1": {HcaHandles: &handles, HcaObjects: &objects}, "mlx4_0": {HcaObjects: &objects}}}},
		{"unified", `{"unified":{"memory.high":"1"}}`, cgroups.Resources{Unified: map[string]string{"memory.high": "1"}}},

		{"devices, none", `{"devices":[{"allow":false,"access":"rwm"}]}`,
			cgroups.Resources{Devices: rule(devices.WildcardDevice, devices.Wildcard, devices.Wildcard, "rwm", false)}},
		{"devices, all", `{"devices":[{"allow":true,"type":"a","access":"rwm"}]}`,
			cgroups.Resources{Devices: rule(devices.WildcardDevice, devices.Wildcard, devices.Wildcard, "rwm", true)}},
		{"devices, a character device", `{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}]}`,
			cgroups.Resources{Devices: rule(devices.CharDevice, 1, 3, "rw", true)}},
		{"devices, every minor of a block device", `{"devices":[{"allow":true,"type":"b","major":8,"access":"m"}]}`,
			cgroups.Resources{Devices: rule(devices.BlockDevice, 8, devices.Wildcard, "m", true)}},
		{"devices, number 0", `{"devices":[{"type":"c","major":0,"minor":0,"access":"r"}]}`,
			cgroups.Resources{Devices: rule(devices.CharDevice, 0, 0, "r", false)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var spec specs.LinuxResources
			if err := json.Unmarshal([]byte(tt.spec), &spec); err != nil {
				t.Fatal(err)
			}
			got, err := resources(&spec)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, &tt.want) {
				t.Errorf("got %+v, want %+v", got, &tt.want)
			}
		})
	}
}

func TestTheSpecificationIsNotShared(t *testing.T) {
	spec := &specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}
	r, err := resources(spec)
	if err != nil {
		t.Fatal(err)
	}
	r.Unified["memory.high"] = "2"
	if got, want := spec.Unified["memory.high"], "1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestADeviceRuleThatSaysNothingIsAnError(t *testing.T) {
	for name, d := range map[string]specs.LinuxDeviceCgroup{
		"no access":              {Type: "c"},
		"an unknown access":      {Type: "c", Access: "rwx"},
		"an unknown type":        {Type: "x", Access: "rwm"},
		"a FIFO":                 {Type: "p", Access: "rwm"},
		"a type of two letters":  {Type: "bc", Access: "rwm"},
		"a type in upper case":   {Type: "C", Access: "rwm"},
		"an access with a space": {Type: "a", Access: "r w"},
	} {
		t.Run(name, func(t *testing.T) {
			if rule, err := deviceRule(d); err == nil {
				t.Errorf("got %+v, want an error", rule)
			}
			if r, err := resources(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "r"}, d}}); err == nil {
				t.Errorf("got %+v, want an error", r)
			}
		})
	}
}
