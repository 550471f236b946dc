// Package gone answers containerd's `delete` for a container that its shim
// has deleted already.
//
// containerd runs the program with `delete` not only after a crash but after
// every regular end of a shim too. There is nothing left to do then, and starting
// up to find that out takes as long as half a container. So a shim leaves the
// answer in the bundle, and this package gives it before the Go runtime starts: it
// has the program's entry point, to be linked with
//
//	-ldflags '-E containerd_shim_wazero_entry'
//
// Whatever that does not know how to answer is left to the runtime's own entry
// point, and so to init, which does the same and is all that a program has that was
// linked without.
package gone

import (
	"os"
	"path/filepath"
)

const file = "deleted"

// Record leaves the answer, an encoded DeleteResponse of containerd's task
// service, in a bundle of which nothing else is left.
func Record(bundle string, answer []byte) error {
	return os.WriteFile(filepath.Join(bundle, file), answer, 0o600)
}

func init() {
	bundle, ok := bundleOf(os.Args)
	if !ok {
		return
	}
	answer, err := os.ReadFile(filepath.Join(bundle, file))
	if err != nil || len(answer) == 0 {
		return // there may be something left to do
	}
	if _, err := os.Stdout.Write(answer); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// bundleOf finds the bundle of a `delete` command line: that of the container
// -id, beside the working directory.
func bundleOf(args []string) (string, bool) {
	if len(args) < 4 || args[len(args)-1] != "delete" {
		return "", false
	}
	cwd, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for i, a := range args[:len(args)-2] {
		if a == "-id" || a == "--id" {
			return filepath.Join(filepath.Dir(cwd), args[i+1]), true
		}
	}
	return "", false
}
