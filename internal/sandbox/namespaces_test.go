package sandbox

import (
	"maps"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestNamespacesAreMadeOrJoinedAsTheSpecificationSays(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spec  []specs.LinuxNamespace
		flags uintptr
		paths map[uintptr]string
	}{
		{"none: a mount namespace all the same", nil, unix.CLONE_NEWNS, nil},
		{"a mount namespace", []specs.LinuxNamespace{{Type: "mount"}}, unix.CLONE_NEWNS, nil},
		{"all new", []specs.LinuxNamespace{
			{Type: "pid"}, {Type: "network"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "cgroup"},
		}, unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP, nil},
		{"those of a pod", []specs.LinuxNamespace{
			{Type: "pid", Path: "/proc/1/ns/pid"}, {Type: "network", Path: "/run/netns/a"}, {Type: "ipc", Path: "/proc/1/ns/ipc"}, {Type: "uts", Path: "/proc/1/ns/uts"},
		}, unix.CLONE_NEWNS, map[uintptr]string{
			unix.CLONE_NEWPID: "/proc/1/ns/pid", unix.CLONE_NEWNET: "/run/netns/a", unix.CLONE_NEWIPC: "/proc/1/ns/ipc", unix.CLONE_NEWUTS: "/proc/1/ns/uts",
		}},
		{"a cgroup namespace by path", []specs.LinuxNamespace{{Type: "cgroup", Path: "/proc/1/ns/cgroup"}}, unix.CLONE_NEWNS,
			map[uintptr]string{unix.CLONE_NEWCGROUP: "/proc/1/ns/cgroup"}},
		{"a user namespace is not entered", []specs.LinuxNamespace{{Type: "user"}, {Type: "user", Path: "/proc/1/ns/user"}}, unix.CLONE_NEWNS, nil},
		{"a time namespace is made otherwise", []specs.LinuxNamespace{{Type: "time"}}, unix.CLONE_NEWNS, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NewNamespaces(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			if got.flags != tt.flags || !maps.Equal(got.paths, tt.paths) {
				t.Errorf("got %#x %v, want %#x %v", got.flags, got.paths, tt.flags, tt.paths)
			}
		})
	}
}

func TestANamespaceThatCannotBeHadIsAnError(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec []specs.LinuxNamespace
	}{
		{"a time namespace twice", []specs.LinuxNamespace{{Type: "time"}, {Type: "time"}}},
		{"an unknown type", []specs.LinuxNamespace{{Type: "pid"}, {Type: "nonsense"}}},
		{"no type", []specs.LinuxNamespace{{}}},
		{"a mount namespace by path", []specs.LinuxNamespace{{Type: "mount", Path: "/proc/1/ns/mnt"}}},
		{"one twice", []specs.LinuxNamespace{{Type: "pid"}, {Type: "uts"}, {Type: "pid"}}},
		{"one new and by path", []specs.LinuxNamespace{{Type: "network"}, {Type: "network", Path: "/run/netns/a"}}},
		{"one by path and new", []specs.LinuxNamespace{{Type: "network", Path: "/run/netns/a"}, {Type: "network"}}},
		{"a mount namespace twice", []specs.LinuxNamespace{{Type: "mount"}, {Type: "mount"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := NewNamespaces(tt.spec); err == nil {
				t.Errorf("got %+v, want an error", got)
			}
		})
	}
}

func TestANamespaceToJoinIsLookedFor(t *testing.T) {
	for path, want := range map[string]string{
		"/proc/self/ns/net":  "",
		"/proc/self/ns/none": "no such file",
		"/proc/self/ns/uts":  "not a net namespace",
		"/etc/hosts":         "not a net namespace",
	} {
		ns, err := NewNamespaces([]specs.LinuxNamespace{{Type: "network", Path: path}})
		if err != nil {
			t.Fatal(err)
		}
		err = ns.Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestAProcessHasTheNamespacesThatAreNotTheStartersOwn(t *testing.T) {
	ns, err := NewNamespaces([]specs.LinuxNamespace{{Type: "pid"}, {Type: "uts", Path: "/proc/1/ns/uts"}})
	if err != nil {
		t.Fatal(err)
	}
	for namespace, want := range map[specs.LinuxNamespaceType]bool{
		specs.MountNamespace: true, specs.PIDNamespace: true, specs.UTSNamespace: true,
		specs.NetworkNamespace: false, specs.IPCNamespace: false, specs.CgroupNamespace: false, specs.UserNamespace: false,
	} {
		if got := ns.Has(namespace); got != want {
			t.Errorf("%s: got %v, want %v", namespace, got, want)
		}
	}
}
