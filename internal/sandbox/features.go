package sandbox

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// MountOptions are the options that [specs.Mount] may have for any file system.
//
// [specs.Mount]: https://github.com/opencontainers/runtime-spec/blob/main/config.md#mounts
func MountOptions() []string {
	all := []string{"bind", "rbind", "tmpcopyup"} // mapped ids are an extension of their own
	for option := range attributes {
		all = append(all, option, "r"+option)
	}
	all = slices.AppendSeq(all, maps.Keys(follows))
	all = slices.AppendSeq(all, maps.Keys(superblockFlags))
	for option := range idleOptions {
		if option != "" {
			all = append(all, option)
		}
	}
	slices.Sort(all)
	return all
}

// NamespaceTypes are the types of namespaces that a process can be started in.
func NamespaceTypes() []string {
	all := []string{string(specs.UserNamespace), string(specs.TimeNamespace)} // as [IDMappings] and [TimeOffsets]
	for t := range namespaceFlags {
		all = append(all, string(t))
	}
	slices.Sort(all)
	return all
}
