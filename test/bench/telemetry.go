package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/hostile"
)

// A hostFile is the configuration of the shims of this host, which each reads as
// it starts.
type hostFile struct{ dir string }

func newHostFile() (*hostFile, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	h := &hostFile{dir}
	return h, h.collector("")
}

func (h *hostFile) path() string { return filepath.Join(h.dir, "config.toml") }

func (h *hostFile) env() string { return "CONTAINERD_SHIM_WAZERO_CONFIG=" + h.path() }

// collector has the shims that start from now on send to an address, nowhere if
// it is empty.
func (h *hostFile) collector(addr string) error {
	text := ""
	if addr != "" {
		text = fmt.Sprintf("[telemetry]\nexporter_otlp_endpoint = %q\nexporter_otlp_protocol = \"grpc\"\n", "http://"+addr)
	}
	return os.WriteFile(h.path(), []byte(text), 0o600)
}

func (h *hostFile) remove() error { return os.RemoveAll(h.dir) }

// serve is a collector in a process of its own, which says where it listens.
func serve() error {
	c, err := collector.Start()
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Println(c.Addr())
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	fmt.Println(len(c.Spans()))
	return nil
}

// startCollector starts this program as a collector. The function it returns ends
// that, and returns how many spans it has received.
func startCollector(ctx context.Context) (addr string, end func() (int, error), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-collect")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	lines := bufio.NewReader(stdout)
	addr, err = lines.ReadString('\n')
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("collector: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	return strings.TrimSpace(addr), func() (spans int, err error) {
		err = stdin.Close()
		if _, e := fmt.Fscan(lines, &spans); e != nil {
			err = errors.Join(err, e)
		}
		return spans, errors.Join(err, cmd.Wait())
	}, nil
}

// telemetry runs a container with telemetry and without, by turns, and prints what
// the calls took that a client waits for.
func telemetry(ctx context.Context, client *containerd.Client, c contender, host *hostFile, rounds int) (err error) {
	defer func() { err = errors.Join(err, host.collector("")) }()
	addr, end, err := startCollector(ctx)
	if err != nil {
		return err
	}
	spans := 0
	defer func() {
		if end != nil {
			_, e := end()
			err = errors.Join(err, e)
		}
	}()
	hanging, err := hostile.Raw(hostile.Silent)
	if err != nil {
		return err
	}
	defer hanging.Close()
	kinds := []struct{ name, addr string }{{"no telemetry", ""}, {"a collector", addr}, {"one that hangs", hanging.Addr()}}
	times := make([]map[string][]time.Duration, len(kinds))
	for i := range times {
		times[i] = map[string][]time.Duration{}
	}
	for round := range rounds + 3 {
		for turn := range kinds {
			// Each comes first as often as the others, and after each of them: a shim may be
			// busy with its end yet.
			i := (round + turn) % len(kinds)
			if round%2 == 1 {
				i = len(kinds) - 1 - i
			}
			if err := host.collector(kinds[i].addr); err != nil {
				return err
			}
			t, err := life(ctx, client, c, fmt.Sprintf("t%d-%d", i, round))
			if err != nil {
				return fmt.Errorf("%s: %w", kinds[i].name, err)
			}
			if round < 3 {
				continue // warm, as in byTurns
			}
			for k, step := range steps {
				times[i][step] = append(times[i][step], t[k])
			}
		}
	}
	time.Sleep(3 * time.Second) // the last shims flush
	spans, err = end()
	end = nil
	if err != nil {
		return err
	}
	if spans == 0 || hanging.Accepted() == 0 {
		return fmt.Errorf("the collectors have seen %d spans and %d connections: there was no telemetry", spans, hanging.Accepted())
	}
	calls := []string{"create", "start", "delete"}
	fmt.Printf("| %-20s |", "")
	for _, step := range calls {
		fmt.Printf(" %-29s |", step+" p50, p95")
	}
	fmt.Println()
	for i, kind := range kinds {
		fmt.Printf("| %-20s |", kind.name)
		for _, step := range calls {
			for _, q := range []float64{0.5, 0.95} {
				at, off := quantile(times[i][step], q), quantile(times[0][step], q)
				fmt.Printf(" %6.1f (%+5.1f)", ms(at), ms(at-off))
			}
			fmt.Print("   |")
		}
		fmt.Println()
	}
	fmt.Printf("\n%d spans were received\n", spans)
	return nil
}
