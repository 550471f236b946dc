//go:build !attack

package instance

// instead is nothing, but in the build that attacks: see attack.go.
func instead([]string) {}
