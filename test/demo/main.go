// Command demo runs a WASI module as a container, on a private containerd, and
// shows its trace, from a collector of its own. It fails when the trace is not
// whole.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

func main() {
	log.SetFlags(0)
	bin := flag.String("bin", "bin", "directory with the shim, containerd and ctr; PATH comes after it")
	guest := flag.String("guest", "bin/guests/probe.wasm", "the module to run")
	flag.Parse()
	if os.Geteuid() != 0 {
		log.Fatal("demo: starts a containerd of its own, which needs root: run it with sudo")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := run(ctx, *bin, *guest); err != nil {
		log.Fatal("demo: ", err)
	}
}

func run(ctx context.Context, bin, guest string) (err error) {
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	c, err := collector.Start()
	if err != nil {
		return err
	}
	defer c.Close()
	n, err := node.Start(ctx, node.Options{Bin: bin, Shim: bin, Env: []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.Addr(),
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc", // for containerd's own spans
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()

	data, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	const image = "example.com/demo:latest"
	if _, err := n.Image(ctx, image, ocispec.ImageConfig{}, node.Regular("app.wasm", data),
		node.Regular("etc/motd", []byte("a file of the image\n"))); err != nil {
		return fmt.Errorf("demo image: %w", err)
	}
	// The first run compiles the module, the second finds it compiled.
	for i, id := range []string{"first", "second"} {
		args := []string{"run", "--rm", "--runtime=" + node.Runtime, image, id, "/app.wasm", "args", "cwd", "cat", "/etc/motd", "sleep", "20ms"}
		fmt.Printf("$ ctr %s\n", strings.Join(args, " "))
		cmd := n.Ctr(ctx, args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", cmd, err)
		}
		expected := collector.Life
		if i == 0 {
			expected = slices.Concat(collector.Life, collector.Miss)
		}
		spans, err := life(ctx, c, id, expected)
		fmt.Printf("\n%s\n", collector.Tree(spans))
		if err != nil {
			return err
		}
	}
	return left(n)
}

// life waits for the trace of a container and checks that it is whole.
func life(ctx context.Context, c *collector.Collector, id string, want []string) ([]collector.Span, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	create, err := c.Find(ctx, "task.create", id)
	if err != nil {
		return nil, err
	}
	for {
		spans := c.Trace(create.TraceID)
		err := whole(spans, want)
		if err == nil {
			return spans, nil
		}
		select {
		case <-ctx.Done():
			return spans, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// whole tells what a trace lacks: a span, or the parent of one.
func whole(spans []collector.Span, want []string) error {
	have := map[string]bool{}
	for _, s := range spans {
		have[s.Name] = true
	}
	var errs []error
	for _, name := range want {
		if !have[name] {
			errs = append(errs, fmt.Errorf("the trace has no %s", name))
		}
	}
	for _, name := range collector.Orphans(spans) {
		errs = append(errs, fmt.Errorf("the trace has no parent of %s", name))
	}
	return errors.Join(errs...)
}

// left tells what the containers have left behind.
func left(n *node.Node) error {
	out, err := exec.Command("findmnt", "-rn", "-o", "TARGET").Output()
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(line, n.Dir+"/state/") {
			return fmt.Errorf("left mounted: %s", line)
		}
	}
	return nil
}
