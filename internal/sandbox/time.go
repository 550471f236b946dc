package sandbox

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TimeOffsets are those of the time namespace that a specification asks for: nil
// when it asks for none.
//
// A namespace that is named by path is an error: the kernel lets no thread of a
// process that has others into one.
func TimeOffsets(namespaces []specs.LinuxNamespace, offsets map[string]specs.LinuxTimeOffset) (map[string]specs.LinuxTimeOffset, error) {
	i := slices.IndexFunc(namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.TimeNamespace })
	switch {
	case i < 0 && len(offsets) > 0:
		return nil, fmt.Errorf("timeOffsets: not without a time namespace")
	case i < 0:
		return nil, nil
	case namespaces[i].Path != "":
		return nil, fmt.Errorf("time namespace: cannot be joined by path (%s)", namespaces[i].Path)
	}
	for clock := range offsets {
		if clock != "monotonic" && clock != "boottime" {
			return nil, fmt.Errorf("timeOffsets: clock %s: want monotonic or boottime", clock)
		}
	}
	asked := map[string]specs.LinuxTimeOffset{}
	maps.Copy(asked, offsets)
	return asked, nil
}

// unshareTime makes a time namespace for what the calling thread starts. There is
// no way back for the thread.
func unshareTime(offsets map[string]specs.LinuxTimeOffset) error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("time namespace: %w", err)
	}
	var lines strings.Builder
	for clock, o := range offsets {
		fmt.Fprintln(&lines, clock, o.Secs, o.Nanosecs)
	}
	if lines.Len() == 0 {
		return nil
	}
	// There is one of these for a process, and none for a thread but as one.
	err := os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", unix.Gettid()), []byte(lines.String()), 0)
	if err != nil {
		return fmt.Errorf("timeOffsets: %w", err)
	}
	return nil
}
