package shim

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
)

const resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

func TestResourcesThatAreNoneAreRefusedByName(t *testing.T) {
	for _, tt := range []struct {
		name, kind, value, says string
	}{
		{"none", "", "", "resources"},
		{"of an unknown type", "example.com/Resources", "{}", "example.com/Resources"},
		{"of another type", "types.containerd.io/opencontainers/runtime-spec/1/Process", "{}", "runtime-spec/1/Process"},
		{"no JSON", resourcesType, "nonsense", "invalid character"},
		{"empty", resourcesType, "", "JSON"},
		{"text for a number", resourcesType, `{"cpu":{"shares":"many"}}`, "cpu.shares"},
		{"a number for a section", resourcesType, `{"memory":5}`, "memory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := limits(&anypb.Any{TypeUrl: tt.kind, Value: []byte(tt.value)})
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want an invalid argument that says %q", err, tt.says)
			}
		})
	}
	if _, err := limits(nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("nil: got %v, want an invalid argument", err)
	}
}

func TestResourcesAreRead(t *testing.T) {
	r, err := limits(&anypb.Any{TypeUrl: resourcesType, Value: []byte(`{"memory":{"limit":5},"added":{"later":1}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if r.Memory == nil || r.Memory.Limit == nil || *r.Memory.Limit != 5 || r.CPU != nil {
		t.Errorf("got %+v", r)
	}
}

func TestACgroupThatIsGoneHasNoMetrics(t *testing.T) {
	for name, read := range map[string]func(map[string]string) (any, error){"version 1": metrics1, "version 2": metrics2} {
		dir := t.TempDir() + "/gone"
		if m, err := read(map[string]string{"": dir, "memory": dir, "cpuacct": dir}); err == nil {
			t.Errorf("%s: got %v, want an error", name, m)
		}
	}
}
