package sandbox

import (
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func mapping(container, host, size uint32) []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: container, HostID: host, Size: size}}
}

func TestAnIDIsTheHostsThatItIsMappedTo(t *testing.T) {
	two := append(mapping(0, 100000, 1000), mapping(2000, 7, 1)...)
	for _, tt := range []struct {
		name     string
		mappings []specs.LinuxIDMapping
		id       uint32
		want     uint32
		ok       bool
	}{
		{"root", two, 0, 100000, true},
		{"the last of a range", two, 999, 100999, true},
		{"past a range", two, 1000, 0, false},
		{"in a second range", two, 2000, 7, true},
		{"between ranges", two, 1999, 0, false},
		{"past all", two, 2001, 0, false},
		{"no mappings", nil, 0, 0, false},
		{"an empty range", mapping(0, 1, 0), 0, 0, false},
		{"below a range", mapping(10, 20, 5), 9, 0, false},
		{"the host's own", mapping(0, 0, math.MaxUint32), 4000000000, 4000000000, true},
		{"an id that none is", mapping(0, 0, math.MaxUint32), math.MaxUint32, 0, false},
		{"past the last of the host's", mapping(0, math.MaxUint32-1, 10), 1, 0, false},
		{"one that would wrap around", mapping(0, 4000000000, math.MaxUint32), 1000000000, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := toHost(tt.mappings, tt.id)
			if got != tt.want || ok != tt.ok {
				t.Errorf("got %d, %v, want %d, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestAUserIsMappedWithItsGroups(t *testing.T) {
	umask := uint32(7)
	m := &IDMappings{UIDs: mapping(0, 1000, 10), GIDs: mapping(0, 2000, 10)}
	got, err := m.User(specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3, 9}, Umask: &umask})
	want := specs.User{UID: 1001, GID: 2002, AdditionalGids: []uint32{2003, 2009}, Umask: &umask}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for want, u := range map[string]specs.User{
		"uid 10": {UID: 10}, "gid 11": {GID: 11}, "additional gid 12": {AdditionalGids: []uint32{1, 12}},
	} {
		if _, err := m.User(u); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	none := (*IDMappings)(nil)
	if got, err := none.User(specs.User{UID: 5}); err != nil || got.UID != 5 {
		t.Errorf("without mappings: got %+v, %v", got, err)
	}
}

func TestTheMappingsAreTheSpecificationsOrTheNamespaces(t *testing.T) {
	ids := mapping(0, 100000, 65536)
	own := "/proc/self/ns/user"
	if m, err := NewIDMappings([]specs.LinuxNamespace{{Type: "user"}}, ids, ids); err != nil || !reflect.DeepEqual(m, &IDMappings{ids, ids}) {
		t.Errorf("a new one: got %+v, %v", m, err)
	}
	if m, err := NewIDMappings([]specs.LinuxNamespace{{Type: "user", Path: own}}, ids, ids); err != nil || !reflect.DeepEqual(m, &IDMappings{ids, ids}) {
		t.Errorf("one by path, with mappings: got %+v, %v", m, err)
	}
	all := mapping(0, 0, math.MaxUint32)
	if m, err := NewIDMappings([]specs.LinuxNamespace{{Type: "user", Path: own}}, nil, nil); err != nil || !reflect.DeepEqual(m, &IDMappings{all, all}) {
		t.Errorf("one by path: got %+v, %v", m, err)
	}
	if m, err := NewIDMappings([]specs.LinuxNamespace{{Type: "pid"}}, nil, nil); m != nil || err != nil {
		t.Errorf("none: got %+v, %v", m, err)
	}
	for name, tt := range map[string]struct {
		ns         []specs.LinuxNamespace
		uids, gids []specs.LinuxIDMapping
	}{
		"mappings without a namespace": {nil, ids, ids},
		"no mappings":                  {[]specs.LinuxNamespace{{Type: "user"}}, nil, nil},
		"no mappings of groups":        {[]specs.LinuxNamespace{{Type: "user"}}, ids, nil},
		"no root":                      {[]specs.LinuxNamespace{{Type: "user"}}, mapping(1, 1, 1), ids},
		"twice":                        {[]specs.LinuxNamespace{{Type: "user"}, {Type: "user"}}, ids, ids},
		"a path that is not there":     {[]specs.LinuxNamespace{{Type: "user", Path: "/proc/self/ns/none"}}, nil, nil},
		"a path that is no namespace":  {[]specs.LinuxNamespace{{Type: "user", Path: "/etc/hosts"}}, nil, nil},
	} {
		if m, err := NewIDMappings(tt.ns, tt.uids, tt.gids); err == nil {
			t.Errorf("%s: got %+v, want an error", name, m)
		}
	}
}

func TestFilesAreMadeAsTheContainersRootAndNoLonger(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TEST_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: run `sudo make test`")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := &IDMappings{UIDs: mapping(0, 100000, 1), GIDs: mapping(0, 200000, 1)}
	thread := newThread()
	defer thread.close()
	err := thread.do(func() error {
		back, err := m.makeFilesAs()
		if err != nil {
			return err
		}
		// In a directory of root's: the capabilities are still there.
		err = os.Mkdir(dir+"/theirs", 0o700)
		back()
		if err != nil {
			return err
		}
		return os.Mkdir(dir+"/ours", 0o700)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]uint32{"theirs": {100000, 200000}, "ours": {0, 0}} {
		var st unix.Stat_t
		if err := unix.Stat(dir+"/"+name, &st); err != nil || st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s: got %d:%d, %v, want %v", name, st.Uid, st.Gid, err, want)
		}
	}
}
