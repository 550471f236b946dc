package shim

import (
	"slices"
	"strings"
	"testing"
)

func TestGuestsMakeSpansUnlessTheHostsFileSaysNo(t *testing.T) {
	for file, want := range map[string]struct {
		on      bool
		unknown []string
		bad     bool
	}{
		"":                                     {on: true},
		"[telemetry]":                          {on: true},
		"[telemetry]\nguest_spans = true":      {on: true},
		"[telemetry]\nguest_spans = false":     {},
		"[telemetry]\nguest_spans = 'false'":   {bad: true},
		"[telemetry]\nguest_span = false":      {on: true, unknown: []string{"telemetry.guest_span"}},
		"[telemetry]\nservice_name = 'guest_'": {on: true},
	} {
		t.Setenv(hostConfigEnv, text(t, "host.toml", file))
		h, err := readHostFile()
		if err != nil {
			t.Fatal(err)
		}
		on, unknown, err := h.observesGuests()
		if on != want.on || !slices.Equal(unknown, want.unknown) || (err != nil) != want.bad || err != nil && !strings.Contains(err.Error(), "telemetry.guest_spans") {
			t.Errorf("%q: got %t, %v, %v", file, on, unknown, err)
		}
	}
}
