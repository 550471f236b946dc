//go:build !attack

package instance

// instead is nothing, but in the build that attacks: see attack.go.
func instead([]string) {}

// unfiltered is whether there are to be no seccomp filters.
func unfiltered([]string) bool { return false }
