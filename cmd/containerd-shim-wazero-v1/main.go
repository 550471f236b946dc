//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command containerd-shim-wazero-v1 is the containerd shim of the runtime
// io.containerd.wazero.v1: it runs WASI modules with wazero as containers.
//
// containerd starts it; see the README for how to tell containerd to. Which role
// a process has, its first argument says: the instance process and the compile
// process, which the shim starts, do not get as far as this package. Its commands are
// compile and cache.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/shim"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "-v", "--v", "-version", "--version":
			fmt.Printf("%s\n  Version:  %s\n  wazero:   %s\n  Go:       %s\n",
				shim.RuntimeName, shim.Version(), instance.EngineVersion(), runtime.Version())
			return
		case "compile", "cache":
			os.Exit(shim.Command(os.Args[1:], os.Stdout, os.Stderr))
		}
	}
	shim.Run(context.Background())
}
