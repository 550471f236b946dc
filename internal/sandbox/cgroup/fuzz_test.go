package cgroup

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzNew reads a path and limits: what is accepted is below the root of each
// hierarchy, never that itself, and has the limits that were given.
func FuzzNew(f *testing.F) {
	limits := []string{
		`null`, `{}`, `[]`, `{"devices":[null]}`, `{"devices":[{"allow":false,"access":"rwm"}]}`, `{"devices":[{"type":"c","major":-1,"minor":null,"access":"rwx"}]}`,
		`{"memory":null,"cpu":null,"pids":null,"blockIO":null,"network":null}`, `{"memory":{"limit":null,"swap":-1,"swappiness":null}}`, `{"memory":{"limit":-9223372036854775808}}`,
		`{"cpu":{"shares":18446744073709551615,"quota":-9223372036854775808,"period":0,"cpus":"0-"}}`, `{"pids":{"limit":null}}`, `{"pids":{"limit":-5}}`,
		`{"blockIO":{"weight":null,"weightDevice":[null],"throttleReadBpsDevice":[null,{"major":-1}]},"hugepageLimits":[null],"rdma":{"a":null}}`,
		`{"unified":{"../x":"1","memory.max":null}}`, `{"network":{"classID":null,"priorities":[null]}}`,
	}
	for i, path := range []string{
		"", "/", ".", "..", "/../..", "//", "/a/../..", "/kubepods/pod1/c1", "relative/path", "kubepods.slice:cri-containerd:c1", ":prefix:name", "a:b:c", "::", ":", "a.slice:b:c/d",
		"system.slice:nerdctl:6c1f0c2b7d3a", "\x00", "/a\x00b", "/\xff", strings.Repeat("a/", 500), "-.slice:a:b", "a.slice::b", ".slice:x:y", "/sys/fs/cgroup",
	} {
		f.Add(path, []byte(limits[i%len(limits)]))
	}
	for _, l := range limits {
		f.Add("/a", []byte(l))
	}
	f.Fuzz(func(t *testing.T, path string, data []byte) {
		var limits *specs.LinuxResources
		if json.Unmarshal(data, &limits) != nil {
			return
		}
		c, err := New(path, "c1", limits, false)
		if err != nil {
			if !strings.Contains(err.Error(), "cgroup") {
				t.Errorf("got %v: what of?", err)
			}
			return
		}
		if IsScope(path) {
			if !c.config.Systemd || c.config.Name == "" || strings.Contains(c.config.Name+c.config.ScopePrefix, "/") {
				t.Errorf("%q: got %+v", path, c.config)
			}
			return
		}
		for subsystem, dir := range c.Paths() {
			root, err := cgroups.FindCgroupMountpoint("", subsystem)
			if err != nil {
				root = "/sys/fs/cgroup" // version 2
			}
			if below, err := filepath.Rel(root, dir); err != nil || !filepath.IsLocal(below) || below == "." {
				t.Errorf("%q is %s, of %s", path, dir, root)
			}
		}
		if limits != nil && limits.Memory != nil && limits.Memory.Limit != nil && c.config.Memory != *limits.Memory.Limit {
			t.Errorf("got a limit of %d, want %d", c.config.Memory, *limits.Memory.Limit)
		}
	})
}
