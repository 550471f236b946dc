//go:build attack

package instance

// instead attacks, if the first argument says so, and does not return then.
func instead(args []string) { syscallAttacks(args) }
