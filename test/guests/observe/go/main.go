// Command observed makes what its twins in C and Rust make as well: two spans, a log in
// each place there is for one, and a metric. Or, as its arguments say:
//
//	spans N   N spans; prints how many, and on standard error how long that took
//	hold      a span, which does not end
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	observe "github.com/containerd-shim-wazero/containerd-shim-wazero/bindings/go"
)

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "spans":
		n, err := strconv.Atoi(os.Args[2])
		if err != nil {
			panic(err)
		}
		began := time.Now()
		for range n {
			observe.Span("one of many")()
		}
		fmt.Fprintln(os.Stderr, time.Since(began).Nanoseconds(), "ns")
		fmt.Println(n, "spans")
	case len(os.Args) == 2 && os.Args[1] == "hold":
		observe.Span("held")
		fmt.Println("holding")
		time.Sleep(time.Hour)
	default:
		twin()
	}
}

func twin() {
	observe.Log(observe.Warn, "before")
	end := observe.Span("work", "lang:go", "kind:test")
	inner := observe.Span("step")
	observe.Log(observe.Info, "half way")
	observe.Metric("guest.items:3|c|#lang:go")
	inner()
	end()
	fmt.Println("observed", os.Getenv("TRACEPARENT"))
}
