package shim

import "runtime/debug"

// Set by the linker in a release.
var version, revision string

// Version is the release this binary is, or the revision it was built from.
func Version() string {
	if version != "" {
		return version
	}
	if r := Revision(); r != "" {
		return r
	}
	return "unknown"
}

// Revision is the one this binary was built from, or empty.
func Revision() string {
	if revision != "" {
		return revision
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}
