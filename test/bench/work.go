package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The pieces of test/guests/work, with how much of each takes a guest about a
// second. Those that need a directory have /data, a bind mount.
var pieces = []struct {
	name, size string
	dir        bool
}{
	{"sha256", "40", false}, {"nbody", "2000", false}, {"memory", "8", false}, {"indirect", "40000", false}, {"host", "2000", false},
	{"grow", "256", false}, {"file", "64", true}, {"files", "3000", true}, {"stdout", "1024", false},
}

// A figure is one line that a piece prints.
type figure struct {
	name       string
	operations float64
	took       time.Duration
	sum        string
}

// A worker has a piece of work done.
type worker struct {
	name string
	do   func(ctx context.Context, args []string) ([]figure, error)
}

// A workbench is what the workers share: the directory that is bound to /data and
// the FIFOs that their output is read from.
type workbench struct {
	dir  string
	node *node.Node
	n    int
}

// work has everything done by the shim, by the same module under `wazero run` and by
// the same program under runc, by turns, and prints what the shim takes beside
// them. Nobody has a limit: `wazero run` is in no cgroup.
//
// It fails when they have not all done the same.
func work(ctx context.Context, n *node.Node, bin, guests string, rounds int, only string) (err error) {
	dir, err := os.MkdirTemp("", "work")
	if err != nil {
		return err
	}
	w := &workbench{dir: dir, node: n}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// In memory: a disk would add the same to all, and noise.
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	if err := mount.All([]mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, data); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.UnmountAll(data, 0)) }()
	module, err := filepath.Abs(filepath.Join(guests, "work.wasm"))
	if err != nil {
		return err
	}
	wasm, err := w.container(ctx, node.Runtime, module)
	if err != nil {
		return err
	}
	native, err := w.container(ctx, "io.containerd.runc.v2", filepath.Join(guests, "work-static"))
	if err != nil {
		return err
	}
	bare := func(ctx context.Context, args []string) ([]figure, error) {
		run := []string{"run", "-cachedir=" + filepath.Join(dir, "cache"), "-mount=" + data + ":/data", module, "--"}
		return w.read(func(stdout, stderr string) error {
			cmd := exec.CommandContext(ctx, filepath.Join(bin, "wazero"), append(run, args...)...)
			return w.run(cmd, stdout, stderr)
		})
	}
	workers := []worker{{"wazero run", bare}, {"shim", wasm}, {"runc", native}}
	fmt.Printf("| | %s, per operation | shim | over it (quartiles) | runc | shim over runc |\n| --- | --- | --- | --- | --- | --- |\n", workers[0].name)
	for _, p := range pieces {
		if !strings.Contains(p.name, only) {
			continue
		}
		args := []string{p.name, p.size}
		if p.dir {
			args = append(args, "/data")
		}
		results := make([][][]figure, len(workers))
		for round := range rounds + 1 {
			for i := range workers {
				i = (i + round) % len(workers) // nobody always comes behind the same
				figures, err := workers[i].do(ctx, args)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.name, workers[i].name, err)
				}
				if round > 0 { // the first is for the caches
					results[i] = append(results[i], figures)
				}
			}
		}
		if err := table(results); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// table prints a row for each figure of a piece: results are by worker, and round.
func table(results [][][]figure) error {
	for k, first := range results[0][0] {
		var times [3][]time.Duration // of one operation, by worker, in ps
		for i, rounds := range results {
			for _, figures := range rounds {
				if len(figures) <= k || figures[k].name != first.name || figures[k].operations != first.operations || figures[k].sum != first.sum {
					return fmt.Errorf("they have not all done the same: %v, %v", first, figures)
				}
				times[i] = append(times[i], time.Duration(float64(figures[k].took)*1000/figures[k].operations))
			}
		}
		over := func(base []time.Duration, q float64) float64 {
			ratios := make([]time.Duration, len(base))
			for i := range base {
				ratios[i] = time.Duration(1e6 * float64(times[1][i]) / float64(base[i]))
			}
			return float64(quantile(ratios, q)) / 1e6
		}
		p50 := func(i int) string { return perOperation(float64(quantile(times[i], 0.5))) }
		fmt.Printf("| %s | %s | %s | %.3f (%.3f to %.3f) | %s | %.2f |\n", first.name, p50(0), p50(1),
			over(times[0], 0.5), over(times[0], 0.25), over(times[0], 0.75), p50(2), over(times[2], 0.5))
	}
	return nil
}

// perOperation is a time in picoseconds, in the unit that fits.
func perOperation(ps float64) string {
	switch {
	case ps < 10e3:
		return fmt.Sprintf("%.2f ns", ps/1e3)
	case ps < 10e6:
		return fmt.Sprintf("%.0f ns", ps/1e3)
	default:
		return fmt.Sprintf("%.1f µs", ps/1e6)
	}
}

// container is a worker that starts a container for each piece.
func (w *workbench) container(ctx context.Context, runtime, file string) (func(context.Context, []string) ([]figure, error), error) {
	program, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	image, err := w.node.Image(ctx, filepath.Base(file), ocispec.ImageConfig{}, node.Program("app", program))
	if err != nil {
		return nil, err
	}
	bind := specs.Mount{Destination: "/data", Type: "bind", Source: filepath.Join(w.dir, "data"), Options: []string{"rbind", "rw"}}
	return func(ctx context.Context, args []string) ([]figure, error) {
		w.n++
		id := fmt.Sprintf("work%d", w.n)
		c, err := w.node.Client.NewContainer(ctx, id, containerd.WithImage(image), containerd.WithNewSnapshot(id, image), containerd.WithRuntime(runtime, nil),
			containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs(append([]string{"/app"}, args...)...), oci.WithMounts([]specs.Mount{bind})))
		if err != nil {
			return nil, err
		}
		figures, err := w.read(func(stdout, stderr string) (err error) {
			task, err := c.NewTask(ctx, func(string) (cio.IO, error) {
				return fifos{cio.Config{Stdout: stdout, Stderr: stderr}}, nil
			})
			if err != nil {
				return err
			}
			defer func() {
				_, e := task.Delete(ctx, containerd.WithProcessKill)
				err = errors.Join(err, e)
			}()
			exit, err := task.Wait(ctx)
			if err != nil {
				return err
			}
			if err := task.Start(ctx); err != nil {
				return err
			}
			status := <-exit
			if code, _, err := status.Result(); err != nil || code != 0 {
				return fmt.Errorf("exit status %d: %w", code, cmp.Or(err, errors.New("it has failed")))
			}
			return nil
		})
		return figures, errors.Join(err, c.Delete(ctx, containerd.WithSnapshotCleanup))
	}, nil
}

// fifos are read by somebody else.
type fifos struct{ config cio.Config }

func (f fifos) Config() cio.Config { return f.config }
func (fifos) Cancel()              {}
func (fifos) Wait()                {}
func (fifos) Close() error         { return nil }

// run runs a command whose output goes to two FIFOs, as a container's does: to
// descriptors that block.
func (w *workbench) run(cmd *exec.Cmd, stdout, stderr string) error {
	var files [2]*os.File
	for i, path := range []string{stdout, stderr} {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), path)
		defer files[i].Close()
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	return cmd.Run()
}

// read has do write to two FIFOs, and returns what is said on the second. What
// comes from the first is read and forgotten.
func (w *workbench) read(do func(stdout, stderr string) error) (figures []figure, err error) {
	dir, err := os.MkdirTemp(w.dir, "fifos")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var said bytes.Buffer
	var held []*os.File // writers, so that no reader sees the end before there was one
	var copies sync.WaitGroup
	var errs [2]error
	paths := []string{filepath.Join(dir, "stdout"), filepath.Join(dir, "stderr")}
	for i, to := range []io.Writer{io.Discard, &said} {
		if err = unix.Mkfifo(paths[i], 0o600); err != nil {
			break
		}
		var r, hold *os.File
		if r, err = os.OpenFile(paths[i], os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			break
		}
		if hold, err = os.OpenFile(paths[i], os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			r.Close()
			break
		}
		held = append(held, hold)
		fd := int(r.Fd())
		if err = unix.SetNonblock(fd, false); err != nil { // a thread that does nothing else
			r.Close()
			break
		}
		copies.Go(func() {
			buf := make([]byte, 1<<16)
			n, err := 1, error(nil)
			for n > 0 || errors.Is(err, unix.EINTR) {
				if n, err = unix.Read(fd, buf); n > 0 {
					_, _ = to.Write(buf[:n]) // neither can fail
				}
			}
			errs[i] = errors.Join(err, r.Close())
		})
	}
	if err == nil {
		err = do(paths[0], paths[1])
	}
	for _, hold := range held {
		hold.Close()
	}
	copies.Wait()
	if err = errors.Join(err, errs[0], errs[1]); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, &said)
	}
	return parse(said.String())
}

func parse(said string) (figures []figure, err error) {
	for line := range strings.Lines(said) {
		f := strings.Fields(line)
		if len(f) != 4 {
			return nil, fmt.Errorf("it says %q", line)
		}
		operations, e1 := strconv.ParseFloat(f[1], 64)
		ns, e2 := strconv.ParseInt(f[2], 10, 64)
		if err := errors.Join(e1, e2); err != nil {
			return nil, fmt.Errorf("it says %q: %w", line, err)
		}
		figures = append(figures, figure{f[0], operations, time.Duration(ns), f[3]})
	}
	if len(figures) == 0 {
		return nil, errors.New("it says nothing")
	}
	return figures, nil
}
