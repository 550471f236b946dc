// Command program tells whether it got as far as its main function.
package main

import (
	"os"

	_ "github.com/containerd-shim-wazero/containerd-shim-wazero/internal/shim/gone"
)

func main() { os.Stdout.WriteString("started") }
