package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// start runs containers of each kind, each on a shim of its own.
func start(ctx context.Context, b *bench) error {
	return b.byTurns(ctx, "start", 0, b.rounds, b.those(runcC, tiny, wasmC, wasmGo), nil)
}

func startTable(r *results) string {
	return fmt.Sprintf("%s\n%s", rounds(r, "start", "from a client's call to containerd's answer, a shim for each container"), stepTable(r, "start"))
}

// pod runs a further container in a running pod, on the pod's shim.
func pod(ctx context.Context, b *bench) (err error) {
	contenders := b.those(runcC, tiny, wasmC, wasmGo)
	for i := range contenders {
		p, err := b.startPod(ctx, contenders[i].runtime)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.end(context.WithoutCancel(ctx))) }()
		contenders[i].pod = p.ID()
	}
	return b.byTurns(ctx, "pod", 0, b.rounds, contenders, nil)
}

func podTable(r *results) string {
	return fmt.Sprintf("%s\n%s", rounds(r, "pod", "a further container in a running pod, on the pod's shim; its first container is an idle Linux one"), stepTable(r, "pod"))
}

// Without its walls.
const bare = "the same, no walls"

// walls runs the same program with its walls and without.
func walls(ctx context.Context, b *bench) error {
	without := b.contenders[tiny]
	// A runtime may be named by its file.
	without.name, without.runtime = bare, filepath.Join(b.bin, bareShim)
	return b.byTurns(ctx, "walls", 0, b.rounds, []contender{b.contenders[tiny], without}, nil)
}

func wallsTable(r *results) string {
	return fmt.Sprintf("%s\n%s", rounds(r, "walls", "with namespaces, mounts, credentials, cgroup and seccomp as ever, and by a build that has none but the cgroup"), stepTable(r, "walls"))
}

// rounds says what a table of byTurns has.
func rounds(r *results, section, what string) string {
	n := 0
	if who := r.who(section); len(who) > 0 {
		n = len(r.of(section, who[0], 0, total))
	}
	return fmt.Sprintf("%d containers of each kind by turns: %s.\n"+
		"Milliseconds, p50 (p95) and p50 over that of the first line; in brackets the interval that has this ratio in 95 of 100 runs.\n", n, what)
}

// stepTable is of a section of byTurns: against its first contender.
func stepTable(r *results, section string) string {
	who := r.who(section)
	t := newTable(append([]string{""}, steps...)...)
	for i, name := range who {
		row := []string{name}
		for _, step := range steps {
			values, base := r.of(section, name, 0, step), r.of(section, who[0], 0, step)
			cell := fmt.Sprintf("%.1f (%.1f)", median(values), quantile(values, 0.95))
			switch over := ratio(values, base, median); {
			case i == 0:
			case step == total:
				cell += fmt.Sprintf(" **%.2f** [%.2f, %.2f]", over.Value, over.Low, over.High)
			case median(base) >= 1: // of less it says nothing
				cell += fmt.Sprintf(" %.2f", over.Value)
			}
			row = append(row, cell)
		}
		t.row(row...)
	}
	return t.String()
}
