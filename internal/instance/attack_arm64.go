//go:build attack

package instance

// attackForkOld are calls that this architecture is without.
func attackForkOld() []try { return nil }
