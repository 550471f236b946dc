package sandbox

import (
	"reflect"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestAProcessIsBornWithItsUserAndTheCapabilitiesAGuestCanUse(t *testing.T) {
	for _, tt := range []struct {
		name         string
		user         specs.User
		capabilities []string
		want         syscall.Credential
		ambient      []uintptr
	}{
		{"root without capabilities", specs.User{}, nil, syscall.Credential{}, nil},
		{"a user with groups", specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{4, 24}}, nil,
			syscall.Credential{Uid: 1000, Gid: 100, Groups: []uint32{4, 24}}, nil},
		{"containerd's default", specs.User{}, []string{
			"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
			"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
		}, syscall.Credential{}, []uintptr{unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER}},
		{"all a guest can use", specs.User{UID: 1}, []string{"CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_DAC_OVERRIDE"},
			syscall.Credential{Uid: 1}, []uintptr{unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_DAC_OVERRIDE}},
		{"unknown and privileged ones", specs.User{}, []string{"CAP_SYS_ADMIN", "CAP_NONSENSE", ""}, syscall.Credential{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			attr := &syscall.SysProcAttr{Setsid: true}
			if err := setCredentials(attr, Config{User: tt.user, Capabilities: tt.capabilities}); err != nil {
				t.Fatal(err)
			}
			want := &syscall.SysProcAttr{Setsid: true, Credential: &tt.want, AmbientCaps: tt.ambient}
			if !reflect.DeepEqual(attr, want) {
				t.Errorf("got %+v %+v, want %+v %+v", attr, attr.Credential, want, want.Credential)
			}
		})
	}
}

func TestInAUserNamespaceAProcessIsTheMappedUserWithoutCapabilities(t *testing.T) {
	ids := &IDMappings{UIDs: mapping(0, 100000, 10), GIDs: mapping(0, 200000, 10)}
	attr := &syscall.SysProcAttr{}
	err := setCredentials(attr, Config{IDs: ids, User: specs.User{GID: 1, AdditionalGids: []uint32{2, 3}}, Capabilities: []string{"CAP_FOWNER"}})
	want := &syscall.Credential{Uid: 100000, Gid: 200001, Groups: []uint32{200002, 200003}}
	if err != nil || !reflect.DeepEqual(attr.Credential, want) || attr.AmbientCaps != nil {
		t.Errorf("got %+v, %v, %v, want %+v and no capabilities", attr.Credential, attr.AmbientCaps, err, want)
	}
	if err := setCredentials(attr, Config{IDs: ids, User: specs.User{UID: 10}}); err == nil {
		t.Error("a user that is not mapped: got no error")
	}
}

func TestOnlyCapabilitiesOverFilesAreAGuests(t *testing.T) {
	var got []uintptr
	for c := uintptr(0); c <= 64; c++ {
		if guestCapability(c) {
			got = append(got, c)
		}
	}
	if want := []uintptr{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAnUnknownResourceLimitIsAnError(t *testing.T) {
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_NONSENSE", Soft: 1, Hard: 1}}
	if err := SetRlimits(limits); err == nil {
		t.Error("of the calling process: got no error")
	}
	if err := setLimits(unix.Getpid(), Config{Rlimits: limits}); err == nil {
		t.Error("of another process: got no error")
	}
}

func TestALimitThatIsInForceIsLeftAlone(t *testing.T) {
	for name, resource := range rlimits {
		var have unix.Rlimit
		if err := unix.Getrlimit(resource, &have); err != nil {
			t.Fatal(err)
		}
		if err := SetRlimits([]specs.POSIXRlimit{{Type: name, Soft: have.Cur, Hard: have.Max}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
