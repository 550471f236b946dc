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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/cgroup"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The pieces of test/guests/work, with how much of each is some tenths of a second
// of a guest's time. Those that need a directory have /data, a bind mount.
var pieces = []struct {
	name, size string
	dir        bool
}{
	{"sha256", "10", false}, {"nbody", "1000", false}, {"memory", "6", false}, {"indirect", "15000", false}, {"host", "1000", false},
	{"grow", "64", false}, {"file", "64", true}, {"files", "3000", true}, {"stdout", "1024", false},
}

// Who does the work.
const (
	bareWazero   = "wazero run"
	bareInCgroup = "wazero run in a cgroup"
	shimWazero   = "shim"
	runcNative   = "runc, static C"
)

// A result is a line that a piece prints.
type result struct {
	name       string
	operations float64
	took       time.Duration
	sum        string // depends on all that was done
}

// A worker has a piece of work done.
type worker struct {
	name string
	do   func(ctx context.Context, args []string) ([]result, error)
}

// A workbench is what the workers share: the directory that is bound to /data and
// those with the FIFOs that their output is read from.
type workbench struct {
	*bench
	dir, data string
	module    string
}

// work has everything done by the shim, by the same module under `wazero run`, by the
// same in a cgroup of its own, and by the same program under runc, by turns.
// Nobody has a limit.
//
// It fails when they have not all done the same.
func work(ctx context.Context, b *bench) (err error) {
	dir, err := os.MkdirTemp("", "work")
	if err != nil {
		return err
	}
	w := &workbench{bench: b, dir: dir, data: filepath.Join(dir, "data")}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// In memory: a disk would add the same to all, and noise.
	if err := os.Mkdir(w.data, 0o755); err != nil {
		return err
	}
	if err := mount.All([]mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, w.data); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.UnmountAll(w.data, 0)) }()
	if w.module, err = filepath.Abs(filepath.Join(b.guests, "work.wasm")); err != nil {
		return err
	}
	wasm, err := w.container(ctx, node.Runtime, w.module)
	if err != nil {
		return err
	}
	native, err := w.container(ctx, "io.containerd.runc.v2", filepath.Join(b.guests, "work-static"))
	if err != nil {
		return err
	}
	workers := []worker{{bareWazero, w.bare}, {bareInCgroup, w.inCgroup}, {shimWazero, wasm}, {runcNative, native}}
	for _, p := range pieces {
		if b.pieces != "" && !slices.Contains(strings.Split(b.pieces, ","), p.name) {
			continue
		}
		args := []string{p.name, p.size}
		if p.dir {
			args = append(args, "/data")
		}
		var first []result
		for round := range b.work + 1 {
			for turn := range workers {
				i := (round + turn) % len(workers)
				if round%2 == 1 {
					i = len(workers) - 1 - i
				}
				results, err := workers[i].do(ctx, args)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.name, workers[i].name, err)
				}
				if first == nil {
					first = results
				}
				if err := same(first, results); err != nil {
					return fmt.Errorf("%s, %s: %w", p.name, workers[i].name, err)
				}
				for _, r := range results {
					s := sample{Section: "work", Who: workers[i].name, What: r.name, Unit: "ns"}
					if round > 0 { // the first is for the caches
						s.Values = []float64{float64(r.took) / r.operations}
					}
					b.add(s)
				}
			}
		}
	}
	return nil
}

// same is an error unless both are of the same work.
func same(a, b []result) error {
	alike := func(x, y result) bool {
		return x.name == y.name && x.operations == y.operations && x.sum == y.sum
	}
	if !slices.EqualFunc(a, b, alike) {
		return fmt.Errorf("did not do what the others did: %v, not %v", b, a)
	}
	return nil
}

func workTable(r *results) string {
	t := newTable("one operation", bareWazero, "shim", "over `wazero run`", "over that in a cgroup", "runc", "shim over runc")
	for _, s := range r.samples {
		if s.Section != "work" || s.Who != bareWazero {
			continue
		}
		of := func(who string) []float64 { return r.of("work", who, 0, s.What) }
		time := func(who string) string { return perOperation(median(of(who))) }
		over := func(who string) string {
			e := ratio(of(shimWazero), of(who), median)
			return fmt.Sprintf("**%.2f** [%.2f, %.2f]", e.Value, e.Low, e.High)
		}
		t.row(s.What, time(bareWazero), time(shimWazero), over(bareWazero), over(bareInCgroup), time(runcNative), over(runcNative))
	}
	return "What a guest does, timed by itself and without any limit: the same module under the shim, under `wazero run` of the same version, under that in a cgroup of its own,\n" +
		"and the same C program in a container of runc's. Medians, by turns; in brackets the interval that has this ratio in 95 of 100 runs.\n\n" + t.String()
}

// perOperation is a time in nanoseconds, in the unit that fits.
func perOperation(ns float64) string {
	switch {
	case ns < 100:
		return fmt.Sprintf("%.1f ns", ns)
	case ns < 10000:
		return fmt.Sprintf("%.0f ns", ns)
	default:
		return fmt.Sprintf("%.1f µs", ns/1e3)
	}
}

// command is `wazero run` of the module; its compiled code is cached.
func (w *workbench) command(ctx context.Context, args []string) *exec.Cmd {
	run := []string{"run", "-cachedir=" + filepath.Join(w.dir, "cache"), "-mount=" + w.data + ":/data", w.module, "--"}
	return exec.CommandContext(ctx, filepath.Join(w.bin, "wazero"), append(run, args...)...)
}

func (w *workbench) bare(ctx context.Context, args []string) ([]result, error) {
	return w.read(func(stdout, stderr string) error {
		cmd := w.command(ctx, args)
		return redirected(cmd, stdout, stderr, cmd.Start)
	})
}

// inCgroup is bare in a cgroup of its own, as any container is in one: in there the
// kernel accounts for memory and processor time.
func (w *workbench) inCgroup(ctx context.Context, args []string) (_ []result, err error) {
	c, err := cgroup.New("", "bench-"+w.id(), nil, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Destroy()) }()
	if err := c.Create(); err != nil {
		return nil, err
	}
	return w.read(func(stdout, stderr string) error {
		cmd := w.command(ctx, args)
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		return redirected(cmd, stdout, stderr, func() error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			return c.StartIn(cmd.SysProcAttr, cmd.Start)
		})
	})
}

// container is a worker that starts a container for each piece.
func (w *workbench) container(ctx context.Context, name, file string) (func(context.Context, []string) ([]result, error), error) {
	program, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	image, err := w.n.Image(ctx, filepath.Base(file), ocispec.ImageConfig{}, node.Program("app", program))
	if err != nil {
		return nil, err
	}
	bind := specs.Mount{Destination: "/data", Type: "bind", Source: w.data, Options: []string{"rbind", "rw"}}
	return func(ctx context.Context, args []string) ([]result, error) {
		id := w.id()
		c, err := w.n.Client.NewContainer(ctx, id, containerd.WithImage(image), containerd.WithNewSnapshot(id, image), containerd.WithRuntime(name, nil),
			containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs(append([]string{"/app"}, args...)...), oci.WithMounts([]specs.Mount{bind})))
		if err != nil {
			return nil, err
		}
		results, err := w.read(func(stdout, stderr string) (err error) {
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
				return fmt.Errorf("exit status %d: %w", code, cmp.Or(err, errors.New("the guest has failed")))
			}
			return nil
		})
		return results, errors.Join(err, c.Delete(ctx, containerd.WithSnapshotCleanup))
	}, nil
}

// fifos are read by somebody else.
type fifos struct{ config cio.Config }

func (f fifos) Config() cio.Config { return f.config }
func (fifos) Cancel()              {}
func (fifos) Wait()                {}
func (fifos) Close() error         { return nil }

// redirected runs a command, started by start, whose output goes to two FIFOs as a
// container's does: to descriptors that block.
func redirected(cmd *exec.Cmd, stdout, stderr string, start func() error) error {
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
	if err := start(); err != nil {
		return err
	}
	return cmd.Wait()
}

// read has do write to two FIFOs, and returns what is said on the second. What
// comes from the first is read and forgotten.
func (w *workbench) read(do func(stdout, stderr string) error) (results []result, err error) {
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

func parse(said string) (results []result, err error) {
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
		results = append(results, result{f[0], operations, time.Duration(ns), f[3]})
	}
	if len(results) == 0 {
		return nil, errors.New("it says nothing")
	}
	return results, nil
}
