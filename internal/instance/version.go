package instance

import (
	"fmt"
	"runtime/debug"
)

// CacheVersion is the version of what this binary puts into the compile cache, for
// the names of entries.
func CacheVersion() string { return fmt.Sprintf("%s-%d", EngineVersion(), entryVersion) }

// EngineVersion is the version of wazero in this binary.
func EngineVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/tetratelabs/wazero" {
				if m.Replace != nil {
					m = m.Replace
				}
				return m.Version
			}
		}
	}
	return "unknown"
}
