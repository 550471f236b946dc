package sandbox

import (
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestATimeNamespaceIsMadeOrRefused(t *testing.T) {
	offsets := map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 100}, "boottime": {Secs: -1, Nanosecs: 5}}
	asked := []specs.LinuxNamespace{{Type: "pid"}, {Type: "time"}}
	for _, tt := range []struct {
		name       string
		namespaces []specs.LinuxNamespace
		offsets    map[string]specs.LinuxTimeOffset
		want       map[string]specs.LinuxTimeOffset
		fails      bool
	}{
		{"none", asked[:1], nil, nil, false},
		{"one without offsets", asked, nil, map[string]specs.LinuxTimeOffset{}, false},
		{"one with offsets", asked, offsets, offsets, false},
		{"offsets alone", asked[:1], offsets, nil, true},
		{"by path", []specs.LinuxNamespace{{Type: "time", Path: "/proc/1/ns/time"}}, nil, nil, true},
		{"a clock that has none", asked, map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := TimeOffsets(tt.namespaces, tt.offsets)
			if (err != nil) != tt.fails || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}
