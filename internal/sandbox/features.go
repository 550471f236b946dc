package sandbox

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// MountOptions are the options that [specs.Mount] may have for any file system.
func MountOptions() []string {
	all := []string{"bind", "rbind", "idmap", "ridmap", "defaults"}
	for option := range attributes {
		all = append(all, option, "r"+option)
	}
	all = slices.AppendSeq(all, maps.Keys(propagations))
	slices.Sort(all)
	return all
}

// NamespaceTypes are the types of namespaces that [NewNamespaces] takes.
func NamespaceTypes() []string {
	all := []string{string(specs.UserNamespace)}
	for t := range namespaceFlags {
		all = append(all, string(t))
	}
	slices.Sort(all)
	return all
}
