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

// telemetry runs a container with telemetry and without, by turns.
func telemetry(ctx context.Context, b *bench) (err error) {
	defer func() { err = errors.Join(err, b.host.collector("")) }()
	addr, end, err := startCollector(ctx)
	if err != nil {
		return err
	}
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
	addresses := map[string]string{"no telemetry": "", "a collector": addr, "one that hangs": hanging.Addr()}
	var kinds []contender
	for _, name := range []string{"no telemetry", "a collector", "one that hangs"} {
		c := b.contenders[tiny]
		c.name = name
		kinds = append(kinds, c)
	}
	if err := b.byTurns(ctx, "telemetry", 0, b.telemetry, kinds, func(c contender) error { return b.host.collector(addresses[c.name]) }); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // the last shims flush
	spans, err := end()
	end = nil
	if err != nil {
		return err
	}
	if spans == 0 || hanging.Accepted() == 0 {
		return fmt.Errorf("the collectors have seen %d spans and %d connections: there was no telemetry", spans, hanging.Accepted())
	}
	b.add(sample{"telemetry", "a collector", 0, "spans", "", []float64{float64(spans)}})
	return nil
}

func telemetryTable(r *results) string {
	who := r.who("telemetry")
	calls := []string{"create", "start", "delete"}
	t := newTable(append([]string{""}, calls...)...)
	for _, name := range who {
		row := []string{name}
		for _, step := range calls {
			cell := ""
			for _, q := range []float64{0.5, 0.95} {
				at, off := quantile(r.of("telemetry", name, 0, step), q), quantile(r.of("telemetry", who[0], 0, step), q)
				if cell != "" {
					cell += ", p95 "
				}
				cell += fmt.Sprintf("%.1f", at)
				if name != who[0] {
					cell += fmt.Sprintf(" (%+.1f)", at-off)
				}
			}
			row = append(row, cell)
		}
		t.row(row...)
	}
	return fmt.Sprintf("What a client waits for, of the tiny module by turns, %d of each kind: milliseconds, p50 and p95, and what it is over no telemetry. The collector has got %.0f spans.\n\n%s",
		len(r.of("telemetry", who[0], 0, total)), mean(r.of("telemetry", "a collector", 0, "spans")), t)
}
