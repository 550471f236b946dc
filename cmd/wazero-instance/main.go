//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command wazero-instance is the part of the program that instance and compile
// processes need. A build of the shim that has it inside, as by `make build`, runs
// them from it: see RATIONALE.md, "Why is there a program inside the program?".
package main

import (
	"fmt"
	"os"

	_ "github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance" // its roles run before main
)

func main() {
	fmt.Fprintln(os.Stderr, "wazero-instance: is started by containerd-shim-wazero-v1 only")
	os.Exit(1)
}
