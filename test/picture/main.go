// Command picture draws a trace as an SVG, from the JSON that Jaeger gives for it
// ("Download JSON" in its user interface, or /api/traces/ID), and writes it to
// standard output.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/jaeger"
)

const title = "From a client's call to the guest's exit code"

func main() {
	log.SetFlags(0)
	log.SetPrefix("picture: ")
	head := flag.String("title", title, "what stands above it")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: picture [-title TEXT] TRACE.json >PICTURE.svg")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	svg, err := draw(flag.Arg(0), *head)
	if err == nil {
		_, err = os.Stdout.Write(svg)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func draw(name, head string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	// What Jaeger's own interface saves has the trace in a list.
	var saved struct{ Data []json.RawMessage }
	if err := json.Unmarshal(data, &saved); err == nil && len(saved.Data) > 0 {
		data = saved.Data[0]
	}
	spans, err := jaeger.Spans(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	svg, err := collector.SVG(head, spans)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return svg, nil
}
