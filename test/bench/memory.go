package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// What is measured of running containers: the kernel's own figures for all their
// processes, shims among them.
const (
	pss         = "PSS"
	private     = "private"
	descriptors = "descriptors"
	threads     = "threads"
	cpu         = "processor time"
	switches    = "wake-ups"
)

// memory is what idle containers take that have a shim each, kind by kind, and what
// a further one takes in a pod.
func memory(ctx context.Context, b *bench) error {
	for _, c := range b.those(runcC, wasmC, wasmGo) {
		all, err := b.residents(ctx, c, b.containers)
		if err != nil {
			return err
		}
		err = rest(ctx, b.settle)
		if err == nil {
			err = b.weigh(c, all, "memory")
		}
		if err = errors.Join(err, end(context.WithoutCancel(ctx), all)); err != nil {
			return err
		}
	}
	for range b.pods {
		for _, c := range b.those(runcC, wasmC, wasmGo) {
			if err := b.further(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// rest waits for running containers to settle: for the garbage of their start to be
// collected and given back, mostly.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// weigh adds what each container takes that has a shim of its own. A process of the
// kind that is nobody's shim is shared out among them.
func (b *bench) weigh(c contender, all []*resident, section string) error {
	costs, err := b.costs(c, all)
	if err != nil {
		return err
	}
	for _, one := range costs {
		for _, v := range []sample{
			{What: pss, Unit: "KiB", Values: []float64{one.pss}},
			{What: private, Unit: "KiB", Values: []float64{one.private}},
			{What: descriptors, Values: []float64{float64(one.descriptors)}},
			{What: threads, Values: []float64{float64(one.threads)}},
		} {
			v.Section, v.Who, v.Count = section, c.name, len(all)
			b.add(v)
		}
	}
	return nil
}

// costs are what each of the containers takes, in no order.
func (b *bench) costs(c contender, all []*resident) ([]cost, error) {
	found, err := families(c.programs...)
	if err != nil {
		return nil, err
	}
	var costs []cost
	var beside cost
	have := 0
	for _, f := range found {
		sum, err := f.cost()
		if err != nil {
			return nil, fmt.Errorf("processes %v of %s: %w", f, c.name, err)
		}
		if !slices.ContainsFunc(all, func(r *resident) bool { return slices.Contains(f, int(r.task.Pid())) }) {
			beside = beside.add(sum)
			continue
		}
		have++
		costs = append(costs, sum)
	}
	if have != len(all) {
		return nil, fmt.Errorf("%d containers of %s have %d shims with a task", len(all), c.name, have)
	}
	for i := range costs {
		costs[i].pss += beside.pss / float64(have)
		costs[i].private += beside.private / float64(have)
		costs[i].cpu += beside.cpu / time.Duration(have)
	}
	return costs, nil
}

// sum is what all processes of a kind take together.
func sum(c contender) (all cost, err error) {
	found, err := families(c.programs...)
	if err != nil {
		return all, err
	}
	for _, f := range found {
		one, err := f.cost()
		if err != nil {
			return all, fmt.Errorf("processes %v of %s: %w", f, c.name, err)
		}
		all = all.add(one)
	}
	return all, nil
}

// further adds what a pod takes more, all its processes together, for each of ten
// containers beside its first one. Nothing else of the kind runs: who maps the same
// file has a part of its memory.
func (b *bench) further(ctx context.Context, c contender) (err error) {
	p, err := b.startPod(ctx, c.runtime)
	if err != nil {
		return err
	}
	all := []*resident{}
	defer func() {
		err = errors.Join(err, end(context.WithoutCancel(ctx), all), p.end(context.WithoutCancel(ctx)))
	}()
	c.pod = p.ID()
	more := min(10, b.containers)
	var before cost
	for _, n := range []int{1, more} {
		added, err := b.residents(ctx, c, n)
		all = append(all, added...)
		if err == nil {
			err = rest(ctx, b.settle/4)
		}
		if err != nil {
			return err
		}
		after, err := sum(c)
		if err != nil {
			return err
		}
		if n == more {
			b.add(sample{"memory", c.name, 0, inPod(pss), "KiB", []float64{(after.pss - before.pss) / float64(more)}})
			b.add(sample{"memory", c.name, 0, inPod(private), "KiB", []float64{(after.private - before.private) / float64(more)}})
		}
		before = after
	}
	return nil
}

func inPod(what string) string { return what + ", a further one in a pod" }

func memoryTable(r *results) string {
	t := newTable("", "containers", "PSS each", "over runc's", "private each", "descriptors", "threads", "a further one in a pod, PSS", "private")
	for _, name := range r.who("memory") {
		for _, n := range r.counts("memory", name) {
			if n == 0 {
				continue
			}
			value := func(what string) []float64 { return r.of("memory", name, n, what) }
			over := ratio(value(pss), r.of("memory", runcC, n, pss), mean)
			more := r.of("memory", name, 0, inPod(pss))
			t.row(name, fmt.Sprint(n), mib(mean(value(pss))), fmt.Sprintf("**%.2f** [%.2f, %.2f]", over.Value, over.Low, over.High), mib(mean(value(private))),
				fmt.Sprintf("%.1f", mean(value(descriptors))), fmt.Sprintf("%.1f", mean(value(threads))),
				fmt.Sprintf("%s (%s to %s)", mib(median(more)), mib(quantile(more, 0)), mib(quantile(more, 1))), mib(median(r.of("memory", name, 0, inPod(private)))))
		}
	}
	return fmt.Sprintf("Idle containers, a shim for each, of one kind at a time, after %s: the sum of what the kernel says of all their processes, shims among them, divided by their number. PSS has\n"+
		"a page that is shared as a part for each. In a pod: what all processes of a pod take more for each of ten containers beside the first one, median of the pods (lowest, highest).\n\n%s", "some seconds", t)
}

// mib is a number of KiB, in MiB.
func mib(kib float64) string { return fmt.Sprintf("%.2f MiB", kib/1024) }

// idle is the processor time of idle containers of both kinds. They run at the same
// time, so that both are watched for the same while, on the same machine: what is
// counted is their own time only, which does not depend on the others'. A Go program
// that does nothing collects its garbage every two minutes.
func idle(ctx context.Context, b *bench) (err error) {
	kinds := b.those(runcC, wasmC)
	residents := map[string][]*resident{}
	defer func() {
		for _, all := range residents {
			err = errors.Join(err, end(context.WithoutCancel(ctx), all))
		}
	}()
	for _, c := range kinds {
		if residents[c.name], err = b.residents(ctx, c, b.containers); err != nil {
			return err
		}
	}
	if err := rest(ctx, b.settle); err != nil {
		return err
	}
	before := map[string]watched{}
	for _, c := range kinds {
		if before[c.name], err = watch(c); err != nil {
			return err
		}
	}
	if err := rest(ctx, b.idle); err != nil {
		return err
	}
	for _, c := range kinds {
		after, err := watch(c)
		if err != nil {
			return err
		}
		for first, now := range after {
			then, ok := before[c.name][first]
			if !ok {
				return fmt.Errorf("%s: process %d has begun meanwhile", c.name, first)
			}
			// At what interval this was, in case that somebody looks at the file alone.
			b.add(sample{"idle", c.name, b.containers, cpu, "ms", []float64{ms(now.cpu - then.cpu)}})
			b.add(sample{"idle", c.name, b.containers, switches, "", []float64{float64(now.switches - then.switches)}})
			delete(before[c.name], first)
		}
		if len(before[c.name]) > 0 {
			return fmt.Errorf("%s: processes have ended meanwhile: %v", c.name, before[c.name])
		}
		b.add(sample{"idle", c.name, b.containers, "interval", "s", []float64{b.idle.Seconds()}})
	}
	return nil
}

// watched are the costs of families by their first processes.
type watched map[int]cost

func watch(c contender) (watched, error) {
	found, err := families(c.programs...)
	if err != nil {
		return nil, err
	}
	w := watched{}
	for _, f := range found {
		if w[f[0]], err = f.cost(); err != nil {
			return nil, fmt.Errorf("processes %v of %s: %w", f, c.name, err)
		}
	}
	return w, nil
}

func idleTable(r *results) string {
	t := newTable("", "containers", "seconds", "processor time each", "over runc's", "all of them, of one processor", "wake-ups each")
	for _, name := range r.who("idle") {
		for _, n := range r.counts("idle", name) {
			values, seconds := r.of("idle", name, n, cpu), mean(r.of("idle", name, n, "interval"))
			over := ratio(values, r.of("idle", runcC, n, cpu), mean)
			t.row(name, fmt.Sprint(n), fmt.Sprintf("%.0f", seconds), fmt.Sprintf("%.2f ms", mean(values)), fmt.Sprintf("**%.2f** [%.2f, %.2f]", over.Value, over.Low, over.High),
				fmt.Sprintf("%.3f %%", mean(values)*float64(n)/seconds/10), fmt.Sprintf("%.0f", mean(r.of("idle", name, n, switches))))
		}
	}
	return "Idle containers, a shim for each, of both kinds at the same time: the processor time, user and system, of all their processes in a while.\n\n" + t.String()
}
