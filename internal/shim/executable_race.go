//go:build race

package shim

import (
	"os"
	"path/filepath"
)

// executable, under the race detector, is the ordinary program in the directory
// above: the detector reads procfs as it starts, which an instance process loses
// meanwhile.
var executable = func() string {
	self, err := os.Executable()
	if err != nil {
		return "/proc/self/exe"
	}
	return filepath.Join(filepath.Dir(filepath.Dir(self)), runtimeBinary)
}()
