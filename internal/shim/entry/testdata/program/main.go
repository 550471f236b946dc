// Command program tells whether it got as far as its main function. As what a `start` has
// become it answers, once its standard input has ended, and lives on until it has said in
// the file REPORT what is left of it.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/shim/entry"
)

func main() {
	if len(os.Args) == 0 || os.Args[len(os.Args)-1] != entry.Serve {
		os.Stdout.WriteString("started")
		return
	}
	if err := serve(); err != nil {
		fmt.Fprint(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() error {
	if err := entry.Started(); err != nil {
		return err
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if len(input) > 0 {
		return fmt.Errorf("refused: %s", input)
	}
	err = entry.Answer([]byte("answer"))
	report := fmt.Sprintln(err)
	for fd := range 5 {
		link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		report += fmt.Sprintln(fd, link)
	}
	cmdline, _ := os.ReadFile("/proc/self/cmdline")
	path := os.Getenv("REPORT")
	if err := os.WriteFile(path+".new", []byte(fmt.Sprintf("%s%q", report, cmdline)), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
