// Command observed makes what its twins in C and Rust make as well: two spans, a log in
// each place there is for one, and a metric.
package main

import (
	"fmt"
	"os"

	observe "github.com/containerd-shim-wazero/containerd-shim-wazero/bindings/go"
)

func main() {
	observe.Log(observe.Warn, "before")
	end := observe.Span("work", "lang:go", "kind:test")
	inner := observe.Span("step")
	observe.Log(observe.Info, "half way")
	observe.Metric("guest.items:3|c|#lang:go")
	inner()
	end()
	fmt.Println("observed", os.Getenv("TRACEPARENT"))
}
