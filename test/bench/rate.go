package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// rate is how many containers can be run a second, one at a time and some, each on
// a shim of its own: what a shim puts off until after its replies is in it.
func rate(ctx context.Context, b *bench) error {
	for _, at := range []int{1, 4} {
		contenders := b.those(runcC, tiny, wasmC, wasmGo)
		for _, c := range contenders {
			b.add(sample{"rate", c.name, at, "rate", "1/s", nil})
		}
		tasks := b.tasks
		if at == 1 {
			tasks = (tasks + 1) / 2 // they take as long
		}
		for block := range b.blocks {
			for turn := range contenders {
				c := contenders[(block+turn)%len(contenders)]
				perSecond, err := b.throughput(ctx, c, tasks, at)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				b.add(sample{"rate", c.name, at, "rate", "1/s", []float64{perSecond}})
			}
		}
	}
	return nil
}

// throughput runs containers, some at a time, from the first one's metadata to the
// removal of the last one's snapshot.
func (b *bench) throughput(ctx context.Context, c contender, tasks, at int) (float64, error) {
	work := make(chan struct{})
	errs := make([]error, at)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range at {
		wg.Go(func() {
			for range work {
				_, err := life(ctx, b.n.Client, c, b.id())
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	for range tasks {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	return float64(tasks) / time.Since(began).Seconds(), errors.Join(errs...)
}

func rateTable(r *results) string {
	t := newTable("in parallel", "", "tasks per second, median (lowest, highest block)", "over runc's")
	for _, at := range r.counts("rate", runcC) {
		for _, name := range r.who("rate") {
			values := r.of("rate", name, at, "rate")
			over := ratio(values, r.of("rate", runcC, at, "rate"), median)
			t.row(fmt.Sprint(at), name, fmt.Sprintf("%.1f (%.1f, %.1f)", median(values), quantile(values, 0), quantile(values, 1)), fmt.Sprintf("**%.2f** [%.2f, %.2f]", over.Value, over.Low, over.High))
		}
	}
	return "Containers from their metadata to the removal of their snapshots, in blocks, by turns.\n\n" + t.String()
}
