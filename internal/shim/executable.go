//go:build !race

package shim

// executable is what the shim re-executes: the very file it runs, though that may
// have been replaced.
const executable = "/proc/self/exe"
