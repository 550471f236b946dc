package sandbox

import (
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestAUserIsToTheHostWhatItIsMappedTo(t *testing.T) {
	uids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200_000, Size: 1000}, {ContainerID: 5000, HostID: 70_000, Size: 1}}
	gids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300_000, Size: 65536}}
	for _, tt := range []struct {
		name string
		user specs.User
		want *specs.User // nil: there is none
	}{
		{"root", specs.User{}, &specs.User{UID: 200_000, GID: 300_000, AdditionalGids: []uint32{}}},
		{"the last of a range, and groups", specs.User{UID: 999, GID: 5, AdditionalGids: []uint32{0, 65535}}, &specs.User{UID: 200_999, GID: 300_005, AdditionalGids: []uint32{300_000, 365_535}}},
		{"one of another range", specs.User{UID: 5000}, &specs.User{UID: 70_000, GID: 300_000, AdditionalGids: []uint32{}}},
		{"behind a range", specs.User{UID: 1000}, nil},
		{"a group that is not mapped", specs.User{GID: 65536}, nil},
		{"an additional group that is not mapped", specs.User{AdditionalGids: []uint32{1 << 31}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := hostUser(tt.user, uids, gids)
			if tt.want == nil {
				if err == nil {
					t.Errorf("got %+v, want an error", got)
				}
			} else if err != nil || !reflect.DeepEqual(got, *tt.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, *tt.want)
			}
		})
	}
}
