package main

import (
	"context"
	"errors"
	"fmt"
)

// scale is what one more container costs beside few and many others on the node,
// and what each of those takes. The others are idle, have a shim each, and are of
// one kind at a time: at the end there is only the one once more, so that a machine
// that has become slower meanwhile is told from a cost that has grown.
func scale(ctx context.Context, b *bench) error {
	return b.eachKind(ctx, b.scaleOf)
}

// eachKind calls measure for each kind of others, and for what one more is then.
func (b *bench) eachKind(ctx context.Context, measure func(ctx context.Context, others, more contender) error) error {
	for _, kind := range []struct{ others, more string }{{wasmC, tiny}, {runcC, runcC}} {
		if err := measure(ctx, b.contenders[kind.others], b.contenders[kind.more]); err != nil {
			return fmt.Errorf("%s: %w", kind.others, err)
		}
	}
	return nil
}

func (b *bench) scaleOf(ctx context.Context, others, more contender) (err error) {
	var all []*resident
	defer func() { err = errors.Join(err, end(context.WithoutCancel(ctx), all)) }()
	for _, n := range b.nodeCounts {
		added, err := b.residents(ctx, others, n-len(all))
		all = append(all, added...)
		if err == nil {
			err = rest(ctx, b.settle)
		}
		if err == nil {
			err = b.weigh(others, all, "scale")
		}
		if err == nil {
			err = b.byTurns(ctx, "scale", n, b.few(), []contender{more}, nil)
		}
		if err != nil {
			return fmt.Errorf("beside %d: %w", n, err)
		}
	}
	first := b.nodeCounts[0]
	err = end(ctx, all[first:])
	all = all[:first]
	if err != nil {
		return err
	}
	more.name += again
	return b.byTurns(ctx, "scale", first, b.few(), []contender{more}, nil)
}

const again = ", at the end"

// few are the rounds where there are many of them.
func (b *bench) few() int { return (b.rounds + 1) / 2 }

func scaleTable(r *results) string {
	return fmt.Sprintf("Beside idle containers of its kind, with a shim each, on one containerd: one more from create to delete, milliseconds, p50 (p95); and the mean of what each takes. \"%s\" is after\n"+
		"all but the first have ended: by so much the machine has changed. What runc's shim takes more is containerd's.\n\n%s", again[2:], scaleTables(r, "scale"))
}

// podScale is the same in a pod, all on one shim.
func podScale(ctx context.Context, b *bench) error {
	return b.eachKind(ctx, b.podScaleOf)
}

func (b *bench) podScaleOf(ctx context.Context, others, more contender) (err error) {
	p, err := b.startPod(ctx, others.runtime)
	if err != nil {
		return err
	}
	all := []*resident{}
	defer func() {
		err = errors.Join(err, end(context.WithoutCancel(ctx), all), p.end(context.WithoutCancel(ctx)))
	}()
	others.pod, more.pod = p.ID(), p.ID()
	var before cost
	have := 0
	for _, n := range append([]int{0}, b.podCounts...) {
		added, err := b.residents(ctx, others, n-have)
		all = append(all, added...)
		if err == nil {
			err = rest(ctx, b.settle)
		}
		if err != nil {
			return fmt.Errorf("%d in the pod: %w", n, err)
		}
		now, err := sum(others)
		if err != nil {
			return err
		}
		if n > 0 {
			each := 1 / float64(n-have)
			b.add(sample{"podscale", others.name, n, pss, "KiB", []float64{(now.pss - before.pss) * each}})
			b.add(sample{"podscale", others.name, n, descriptors, "", []float64{float64(now.descriptors-before.descriptors) * each}})
			b.add(sample{"podscale", others.name, n, threads, "", []float64{float64(now.threads-before.threads) * each}})
			if err := b.byTurns(ctx, "podscale", n, b.few(), []contender{more}, nil); err != nil {
				return fmt.Errorf("beside %d in the pod: %w", n, err)
			}
			if err := rest(ctx, b.settle); err != nil {
				return err
			}
			// What those have left to the shim is none of the next ones'.
			if now, err = sum(others); err != nil {
				return err
			}
		}
		before, have = now, n
	}
	return nil
}

func podScaleTable(r *results) string {
	return fmt.Sprintf("The same in a pod, on one shim, which has an idle Linux container as its first: one more from create to delete; and what all processes of the pod take more for each\n"+
		"of those that were added since the line before.\n\n%s", scaleTables(r, "podscale"))
}

func scaleTables(r *results, section string) string {
	t := newTable("", "containers", "create to delete", "PSS each", "descriptors", "threads")
	for _, kind := range []struct{ others, more string }{{wasmC, tiny}, {runcC, runcC}} {
		for _, n := range r.counts(section, kind.others) {
			value := func(what string) float64 { return mean(r.of(section, kind.others, n, what)) }
			times := r.of(section, kind.more, n, total)
			t.row(kind.others, fmt.Sprint(n), fmt.Sprintf("%.1f (%.1f)", median(times), quantile(times, 0.95)), mib(value(pss)),
				fmt.Sprintf("%.1f", value(descriptors)), fmt.Sprintf("%.1f", value(threads)))
		}
		for _, n := range r.counts(section, kind.more+again) {
			times := r.of(section, kind.more+again, n, total)
			t.row(kind.others+again, fmt.Sprint(n), fmt.Sprintf("%.1f (%.1f)", median(times), quantile(times, 0.95)))
		}
	}
	return t.String()
}
