package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// A contender is a runtime with a program for it.
type contender struct {
	name, runtime string
	image         containerd.Image
	args, idle    []string
	programs      []string // the files that its shims and their helpers are executed from
	pod           string   // whose shim to use; its own where empty
}

// Whom ratios are over, and whom targets are for.
const (
	runcC  = "runc, static C"
	tiny   = "wazero, tiny module"
	wasmC  = "wazero, C module"
	wasmGo = "wazero, Go module"
)

// The steps of a life, and all of them.
var steps = []string{"create", "start", "exit", "delete", total}

const total = "total"

// spec is the same for every contender: containerd's default namespaces and
// mounts, and the limits a pod commonly has.
func (c contender) spec(args []string) containerd.NewContainerOpts {
	return containerd.WithNewSpec(oci.WithImageConfig(c.image), oci.WithProcessArgs(args...),
		oci.WithMemoryLimit(256<<20), oci.WithCPUShares(512), oci.WithCPUCFS(200000, 100000), oci.WithPidsLimit(512))
}

func (c contender) create(ctx context.Context, client *containerd.Client, id string, args []string) (containerd.Container, error) {
	opts := []containerd.NewContainerOpts{
		containerd.WithImage(c.image), containerd.WithNewSnapshot(id, c.image), containerd.WithRuntime(c.runtime, nil), c.spec(args),
	}
	if c.pod != "" {
		opts = append(opts, containerd.WithSandbox(c.pod))
	}
	return client.NewContainer(ctx, id, opts...)
}

// life runs one container and times its steps, in milliseconds. Metadata and
// snapshot are made before and removed after: they are the same for all.
func life(ctx context.Context, client *containerd.Client, c contender, id string) (t [5]float64, err error) {
	container, err := c.create(ctx, client, id, c.args)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	return timed(ctx, container)
}

// timed runs a container's task to its end.
func timed(ctx context.Context, container containerd.Container) (t [5]float64, err error) {
	began := time.Now()
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		return t, err
	}
	t[0] = ms(time.Since(began))
	exit, err := task.Wait(ctx)
	if err != nil {
		return t, err
	}
	at := time.Now()
	if err := task.Start(ctx); err != nil {
		return t, err
	}
	t[1] = ms(time.Since(at))
	at = time.Now()
	status := <-exit
	t[2] = ms(time.Since(at))
	at = time.Now()
	if _, err := task.Delete(ctx); err != nil {
		return t, err
	}
	t[3] = ms(time.Since(at))
	t[4] = ms(time.Since(began))
	if code, _, err := status.Result(); err != nil || code != 0 {
		return t, errors.Join(fmt.Errorf("exit status %d", code), err)
	}
	return t, nil
}

// byTurns runs containers one at a time, each contender first as often as the
// others and after each of them, for a shim may be busy with its end yet. before,
// if there is one, is called ahead of each life.
func (b *bench) byTurns(ctx context.Context, section string, count, rounds int, contenders []contender, before func(contender) error) error {
	for _, c := range contenders { // in this order, whoever comes first
		for _, step := range steps {
			b.add(sample{section, c.name, count, step, "ms", nil})
		}
	}
	for round := range rounds + b.warm {
		for turn := range contenders {
			i := (round + turn) % len(contenders)
			if round%2 == 1 {
				i = len(contenders) - 1 - i
			}
			c := contenders[i]
			if before != nil {
				if err := before(c); err != nil {
					return err
				}
			}
			t, err := life(ctx, b.n.Client, c, b.id())
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if round < b.warm {
				continue
			}
			for k, step := range steps {
				b.add(sample{section, c.name, count, step, "ms", []float64{t[k]}})
			}
		}
	}
	return nil
}

// A resident is a container that runs until it is ended.
type resident struct {
	containerd.Container
	task    containerd.Task
	sandbox sandbox.Store // of a pod
}

// stay starts an idle container.
func (b *bench) stay(ctx context.Context, c contender, id string) (_ *resident, err error) {
	container, err := c.create(ctx, b.n.Client, id, c.idle)
	if err != nil {
		return nil, err
	}
	r := &resident{Container: container}
	task, err := container.NewTask(ctx, cio.NullIO)
	if err == nil {
		r.task = task
		err = task.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.end(context.WithoutCancel(ctx)))
	}
	return r, nil
}

// startPod starts a pod, the way CRI does it: whoever names it as its sandbox is put
// on its shim. Its first container is an idle Linux one.
func (b *bench) startPod(ctx context.Context, runtime string) (*resident, error) {
	store := b.n.Client.SandboxStore()
	pause := b.contenders[runcC]
	pause.runtime = runtime
	id := b.id()
	if _, err := store.Create(ctx, sandbox.Sandbox{ID: id, Runtime: sandbox.RuntimeOpts{Name: runtime}, Sandboxer: "podsandbox"}); err != nil {
		return nil, fmt.Errorf("pod of %s: %w", runtime, err)
	}
	p, err := b.stay(ctx, pause, id)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pod of %s: %w", runtime, err), store.Delete(context.WithoutCancel(ctx), id))
	}
	p.sandbox = store
	return p, nil
}

func (r *resident) end(ctx context.Context) (err error) {
	if r.task != nil {
		_, err = r.task.Delete(ctx, containerd.WithProcessKill)
	}
	err = errors.Join(err, r.Delete(ctx, containerd.WithSnapshotCleanup))
	if r.sandbox != nil {
		err = errors.Join(err, r.sandbox.Delete(ctx, r.ID()))
	}
	return err
}

// parallel is how many containers are made at a time where that is not the question.
const parallel = 4

// residents has a number of idle containers run.
func (b *bench) residents(ctx context.Context, c contender, n int) (all []*resident, err error) {
	var mu sync.Mutex
	err = inParallel(n, func(int) error {
		r, err := b.stay(ctx, c, b.id())
		mu.Lock()
		defer mu.Unlock()
		if r != nil {
			all = append(all, r)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("%d containers of %s: %w", n, c.name, err)
		return nil, errors.Join(err, end(context.WithoutCancel(ctx), all))
	}
	return all, nil
}

// end ends containers, all of them whatever becomes of one.
func end(ctx context.Context, all []*resident) error {
	var mu sync.Mutex
	var errs []error
	_ = inParallel(len(all), func(i int) error {
		err := all[i].end(ctx)
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
		return nil // the others are ended in any case
	})
	return errors.Join(errs...)
}

// inParallel does n things, some at a time, until one fails.
func inParallel(n int, do func(i int) error) error {
	var mu sync.Mutex
	var next int
	var failed error
	var wg sync.WaitGroup
	for range min(n, parallel) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := failed != nil || i >= n
				mu.Unlock()
				if stop {
					return
				}
				if err := do(i); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed
}
