package cgroup

import (
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
)

// scopePrefix begins the name of a scope whose container asks for no other.
const scopePrefix = "wazero"

// stopTimeout is how long a shutdown of the machine waits for a scope, since its
// keeper has to be killed.
const stopTimeout = 5 * time.Second

// IsScope tells whether a cgroupsPath is meant for systemd's driver though nothing
// else says so: `slice:prefix:name`, where the slice may be left to systemd.
// nerdctl gives such a path and no option.
func IsScope(path string) bool {
	slice, rest, ok := strings.Cut(path, ":")
	return ok && strings.Count(rest, ":") == 1 && (slice == "" || strings.HasSuffix(slice, ".slice"))
}

// scope sets the slice and the name of the scope that path names, or of the one
// that the container id has without a path.
func scope(config *cgroups.Cgroup, path, id string) error {
	config.Systemd = true
	config.SystemdProps = []dbus.Property{{Name: "TimeoutStopUSec", Value: godbus.MakeVariant(uint64(stopTimeout.Microseconds()))}}
	if path == "" {
		config.ScopePrefix, config.Name = scopePrefix, id
		return nil
	}
	parts := strings.Split(path, ":")
	if len(parts) != 3 || parts[2] == "" || strings.Contains(parts[1]+parts[2], "/") {
		return fmt.Errorf("path %q: systemd's driver wants slice:prefix:name", path)
	}
	config.Parent, config.ScopePrefix, config.Name = parts[0], parts[1], parts[2]
	return nil
}
