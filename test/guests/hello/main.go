// Command hello says hello; with the argument "idle", stays. It is the Go program
// of the benchmark.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	for len(os.Args) > 1 && os.Args[1] == "idle" {
		time.Sleep(time.Hour)
	}
	fmt.Println("hello")
}
