package sandbox

import (
	"encoding/json"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// FuzzSysctl reads names of kernel parameters: what is accepted is a file of its
// namespace, and of no other directory.
func FuzzSysctl(f *testing.F) {
	for _, name := range []string{
		"", ".", "/", "net.ipv4.ip_unprivileged_port_start", "net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding", "kernel.shmmax", "kernel.domainname",
		"net/../kernel/core_pattern", "net...kernel.core_pattern", "/net/x", "net//x", "net/.", "net.", "fs.mqueue.msg_max", "fs/mqueue/../../kernel/modprobe", "kernel.shmmax\x00", "net/\xff",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		file, ns, err := sysctlFile(name)
		if err != nil {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("got %v: of which parameter?", err)
			}
			return
		}
		path := filepath.Join("/proc/sys", file)
		ok := map[specs.LinuxNamespaceType]bool{
			specs.NetworkNamespace: strings.HasPrefix(path, "/proc/sys/net/"),
			specs.IPCNamespace:     strings.HasPrefix(path, "/proc/sys/fs/mqueue/") || strings.HasPrefix(path, "/proc/sys/kernel/msg") || strings.HasPrefix(path, "/proc/sys/kernel/sh") || path == "/proc/sys/kernel/sem",
			specs.UTSNamespace:     path == "/proc/sys/kernel/domainname",
		}[ns]
		if !ok {
			t.Errorf("%q: got %s of the %s namespace", name, path, ns)
		}
	})
}

// FuzzMountOptions reads the options of a mount: each has its effect or is the file
// system's, and the kernel takes what comes of them.
func FuzzMountOptions(f *testing.F) {
	for _, options := range []string{
		"", "rbind,rprivate,ro", "nosuid,strictatime,mode=755,size=65536k", "rw,ro,rw", "noatime,relatime,nodiratime", "rro,rnoatime", "bind,idmap", "rbind,ridmap", "shared", "runbindable",
		"defaults,,nosymfollow", "r", "rr", "rrw,rsuid", "size=1\x00,\xff", strings.Repeat("ro,", 500), "rslave,slave", "rbind", "upperdir=/a,b",
	} {
		f.Add(options)
	}
	f.Fuzz(func(t *testing.T, text string) {
		options := strings.Split(text, ",")
		o := parseMountOptions(options)
		for _, d := range o.data {
			if !slices.Contains(options, d) {
				t.Errorf("%q was not given", d)
			}
		}
		for _, a := range []unix.MountAttr{o.attr, o.attrRecursive} {
			// EINVAL of mount_setattr(2): the access time can be cleared as a whole only,
			// and must be to be set.
			if atime := a.Attr_clr & unix.MOUNT_ATTR__ATIME; atime != 0 && atime != unix.MOUNT_ATTR__ATIME || atime == 0 && a.Attr_set&unix.MOUNT_ATTR__ATIME != 0 {
				t.Errorf("%q: sets %#x and clears %#x", text, a.Attr_set, a.Attr_clr)
			}
			// Every mount is made private before what its options say.
			if a.Propagation != 0 {
				t.Errorf("%q: propagation %#x: a mount that could propagate to the host", text, a.Propagation)
			}
		}
	})
}

// FuzzIDMappings reads the mappings of a user namespace: a user of the container is
// one of the host that the mappings give, never a number out of them.
func FuzzIDMappings(f *testing.F) {
	for _, mappings := range []string{
		`{}`, `null`, `[]`, `{"uids":[null],"gids":[null]}`,
		`{"uids":[{"containerID":0,"hostID":65536,"size":65536}],"gids":[{"containerID":0,"hostID":65536,"size":65536}]}`,
		`{"uids":[{"hostID":4294967295,"size":4294967295}],"gids":[{"hostID":1,"size":1}]}`,
		`{"uids":[{"hostID":4294967000,"size":4294967295},{"hostID":0,"size":9}],"gids":[{"containerID":4294967295,"hostID":1,"size":1},{"size":1}]}`,
		`{"uids":[{"hostID":-1,"size":1}]}`, `{"uids":[{"size":1}]}`,
	} {
		f.Add([]byte(mappings), uint32(0))
		f.Add([]byte(mappings), uint32(300))
		f.Add([]byte(mappings), uint32(math.MaxUint32))
	}
	f.Fuzz(func(t *testing.T, data []byte, id uint32) {
		var m struct{ UIDs, GIDs []specs.LinuxIDMapping }
		if json.Unmarshal(data, &m) != nil {
			return
		}
		ids, err := NewIDMappings([]specs.LinuxNamespace{{Type: specs.UserNamespace}}, m.UIDs, m.GIDs)
		if err != nil {
			return
		}
		for _, user := range []specs.User{{}, {UID: id, GID: id, AdditionalGids: []uint32{id}}} {
			got, err := ids.User(user)
			if err != nil {
				if user.UID == 0 {
					t.Errorf("%s: no root: %v", data, err)
				}
				continue
			}
			within := func(mappings []specs.LinuxIDMapping, id, host uint32) bool {
				return host != math.MaxUint32 && slices.ContainsFunc(mappings, func(m specs.LinuxIDMapping) bool {
					return id >= m.ContainerID && id-m.ContainerID < m.Size && host >= m.HostID && host-m.HostID == id-m.ContainerID
				})
			}
			if !within(m.UIDs, user.UID, got.UID) || !within(m.GIDs, user.GID, got.GID) || len(got.AdditionalGids) != len(user.AdditionalGids) {
				t.Errorf("%s: %d is %+v", data, user.UID, got)
			}
		}
	})
}
