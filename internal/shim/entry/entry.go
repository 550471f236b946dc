// Package entry is what the program does before the Go runtime starts, which takes
// longer than what containerd asks for. It has the program's entry point, to be linked
// with
//
//	-ldflags '-E containerd_shim_wazero_entry'
//
// A `delete` is answered there for a container that its shim has deleted already.
// containerd runs the program with it not only after a crash but after every regular
// end of a shim too. There is nothing left to do then, so a shim leaves the answer in
// the bundle.
//
// A `start` forks there. The parent only waits until the child has answered, in its
// place, and ends. The child's command is `serve` from then on: it starts the runtime, the
// only one that does, and is the shim.
//
// Whatever the entry point cannot do is left to init, which does the same and is all
// that a program has that was linked without.
package entry

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// Serve is the command of a shim, which was a `start`.
	Serve = "serve"

	// waiterFD and answeredFD are the ends of a pipe. Whoever waits for the answer reads a
	// byte from it: an end without one is that of a shim that failed.
	waiterFD   = 3
	answeredFD = 4

	file = "deleted"
)

// Record leaves the answer, an encoded DeleteResponse of containerd's task
// service, in a bundle of which nothing else is left.
func Record(bundle string, answer []byte) error {
	return os.WriteFile(filepath.Join(bundle, file), answer, 0o600)
}

// Started tells whether this process is one that a `start` has become: else its
// descriptors are the Go runtime's, or anybody's. It is called once.
func Started() error {
	for _, fd := range []int{waiterFD, answeredFD} {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return fmt.Errorf("%s: is for what `start` has begun", Serve)
		}
	}
	return unix.Close(waiterFD) // or else there would always be one who reads
}

// Answer is the answer to `start`, which ends with it; and lets go of its standard streams,
// which containerd reads to their end. It fails where nobody waits any more. It is called
// once.
func Answer(answer []byte) error {
	// Not by package os, which takes a broken standard output for a reason to die.
	n, err := unix.Write(unix.Stdout, answer)
	if err == nil && n < len(answer) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	defer unix.Close(answeredFD)
	if _, err := unix.Write(answeredFD, []byte{0}); err != nil {
		return fmt.Errorf("answer: nobody waits for it: %w", err)
	}
	return nil
}

func init() {
	if isStart(os.Args) {
		if err := start(); err != nil {
			if err != io.EOF { //nolint:errorlint // else the shim has said why
				fmt.Fprintf(os.Stderr, "start the shim: %v", err)
			}
			os.Exit(1)
		}
		os.Exit(0)
	}
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

// isStart tells whether args are the command line of a `start`.
func isStart(args []string) bool {
	return len(args) >= 4 && strings.HasPrefix(args[1], "-") && args[len(args)-1] == "start"
}

// start starts the shim, and waits for its answer.
func start() error {
	answered, answer, err := os.Pipe()
	if err != nil {
		return err
	}
	args := slices.Clone(os.Args)
	args[len(args)-1] = Serve
	_, err = os.StartProcess("/proc/self/exe", args, &os.ProcAttr{ //nolint:gosec // its own, and its own arguments
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, waiterFD: answered, answeredFD: answer},
	})
	if err != nil {
		return err
	}
	answer.Close()
	_, err = answered.Read(make([]byte, 1))
	return err
}

// bundleOf finds the bundle of a `delete` command line: that of the container
// -id, beside the working directory.
func bundleOf(args []string) (string, bool) {
	if len(args) < 4 || !strings.HasPrefix(args[1], "-") || args[len(args)-1] != "delete" {
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
