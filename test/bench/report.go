package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// markdown is a table.
type markdown struct {
	strings.Builder
	columns int
}

func newTable(head ...string) *markdown {
	t := &markdown{columns: len(head)}
	t.row(head...)
	fmt.Fprintf(t, "|%s\n", strings.Repeat(" --- |", t.columns))
	return t
}

func (t *markdown) row(cells ...string) {
	for i := range t.columns {
		cell := ""
		if i < len(cells) {
			cell = cells[i]
		}
		fmt.Fprintf(t, "| %s ", cell)
	}
	t.WriteString("|\n")
}

func machineTable(r *results) string {
	if len(r.Machine) == 0 {
		return ""
	}
	t := newTable("", "")
	for _, f := range r.Machine {
		t.row(f.Name, f.Value)
	}
	return t.String()
}

// A target is a figure that is to be reached.
type target struct {
	name    string // {most} and {few} are the numbers of containers
	bound   float64
	atLeast bool
	unit    string
	measure func(*results) (m measured, ok bool)
}

// measured is what a run has of a target.
type measured struct {
	estimate
	few, most int
}

// flat is by how much the cost of a container may be more beside many than beside
// one, and be called the same.
const flat = 1.2

var targets = []target{
	{"create to delete, tiny module, p50", 0.42, false, "× runc", over("start", tiny, 0, total, median)},
	{"create to delete, 2.6 MB Go program, warm, p50", 0.75, false, "× runc", over("start", wasmGo, 0, total, median)},
	{"second container in the pod's shim, create to delete, p50", 0.15, false, "× runc", over("pod", tiny, 0, total, median)},
	{"{most} running containers, one shim each, PSS each", 1.3, false, "× runc", over("memory", wasmC, anyCount, pss, mean)},
	{"a further container in a pod, PSS", 2.5, false, "MB", furtherPSS},
	{"tasks per second, 4 in parallel", 2.2, true, "× runc", over("rate", tiny, 4, "rate", median)},
	{"processor time of {most} idle containers", 1.0, false, "× runc", over("idle", wasmC, anyCount, cpu, mean)},
	{"beside {most} on the node against {few}: create to delete, p50", flat, false, "×", growth("scale", tiny, 0, total, median)},
	{"the same: PSS each", flat, false, "×", growth("scale", wasmC, 0, pss, mean)},
	{"the same: descriptors each", flat, false, "×", growth("scale", wasmC, 0, descriptors, mean)},
	{"the same: threads each", flat, false, "×", growth("scale", wasmC, 0, threads, mean)},
	{"beside {most} in the pod against {few}: create to delete, p50", flat, false, "×", growth("podscale", tiny, 0, total, median)},
	{"the last of {most} in a pod against those to {few}: PSS each", flat, false, "×", growth("podscale", wasmC, 1, pss, mean)},
	{"the same: descriptors each", flat, false, "×", growth("podscale", wasmC, 1, descriptors, mean)},
	{"the same: threads each", flat, false, "×", growth("podscale", wasmC, 1, threads, mean)},
}

// anyCount is the largest number of containers that there is.
const anyCount = -1

func (r *results) most(section, who string) int {
	n := 0
	for _, c := range r.counts(section, who) {
		n = max(n, c)
	}
	return n
}

// over is what somebody takes over what runc does.
func over(section, who string, count int, what string, statistic func([]float64) float64) func(*results) (measured, bool) {
	return func(r *results) (measured, bool) {
		n := count
		if n == anyCount {
			n = r.most(section, who)
		}
		return compare(r.of(section, who, n, what), r.of(section, runcC, n, what), statistic, measured{most: n})
	}
}

// growth is the cost at most containers over the one at few: the first number that
// was measured, or a later one.
func growth(section, who string, few int, what string, statistic func([]float64) float64) func(*results) (measured, bool) {
	return func(r *results) (measured, bool) {
		counts := r.counts(section, who)
		if len(counts) < few+2 {
			return measured{}, false
		}
		m := measured{few: counts[few], most: r.most(section, who)}
		return compare(r.of(section, who, m.most, what), r.of(section, who, m.few, what), statistic, m)
	}
}

// compare has no answer where there is nothing to compare with.
func compare(a, b []float64, statistic func([]float64) float64, m measured) (measured, bool) {
	if len(a) == 0 || len(b) == 0 || statistic(b) == 0 {
		return measured{}, false
	}
	m.estimate = ratio(a, b, statistic)
	return m, true
}

func furtherPSS(r *results) (measured, bool) {
	values := r.of("memory", wasmC, 0, inPod(pss))
	if len(values) == 0 {
		return measured{}, false
	}
	e := of(values, median)
	const mb = 1024.0 / 1e6 // of a KiB
	return measured{estimate: estimate{e.Value * mb, e.Low * mb, e.High * mb}}, true
}

// An outcome is a target with what a run has of it.
type outcome struct {
	Name    string  `json:"name"`
	Target  float64 `json:"target"`
	AtLeast bool    `json:"at_least,omitempty"`
	Unit    string  `json:"unit"`
	estimate
	Met bool `json:"met"`
}

// outcomes are those that results have samples for.
func outcomes(r *results) (all []outcome) {
	wanted := slices.Clone(targets)
	for _, s := range r.samples {
		if s.Section == "work" && s.Who == bareWazero {
			wanted = append(wanted, target{workOf + s.What, 1.03, false, "× `wazero run`", func(r *results) (measured, bool) {
				return compare(r.of("work", shimWazero, 0, s.What), s.Values, median, measured{})
			}})
		}
	}
	for _, t := range wanted {
		m, ok := t.measure(r)
		if !ok {
			continue
		}
		name := strings.NewReplacer("{most}", fmt.Sprint(m.most), "{few}", fmt.Sprint(m.few)).Replace(t.name)
		met := m.Value <= t.bound
		if t.atLeast {
			met = m.Value >= t.bound
		}
		all = append(all, outcome{name, t.bound, t.atLeast, t.unit, m.estimate, met})
	}
	return all
}

// Names of the targets for what guests do, which are many.
const workOf = "work of a guest: "

// verdict says whether a target is met, and whether another run might say otherwise.
func (f outcome) verdict() string {
	text := "**no**"
	if f.Met {
		text = "yes"
	}
	if f.Low <= f.Target && f.Target <= f.High && f.Low != f.High {
		text += ", within the noise"
	}
	return text
}

func targetTable(r *results) string {
	all := outcomes(r)
	if len(all) == 0 {
		return ""
	}
	t := newTable("figure", "target", "this run", "95 of 100 runs", "met")
	met := slices.DeleteFunc(slices.Clone(all), func(f outcome) bool { return !f.Met || !strings.HasPrefix(f.Name, workOf) })
	for i, f := range all {
		if i == slices.IndexFunc(all, func(f outcome) bool { return strings.HasPrefix(f.Name, workOf) }) && len(met) > 0 {
			worst := slices.MaxFunc(met, func(a, b outcome) int { return cmp.Compare(a.Value, b.Value) })
			t.row(fmt.Sprintf("%s%d of %d kinds", workOf, len(met), len(all)-i), fmt.Sprintf("at most %.3g %s", f.Target, f.Unit), fmt.Sprintf("up to **%.2f**", worst.Value), "", "yes")
		}
		if f.Met && strings.HasPrefix(f.Name, workOf) {
			continue // in that line
		}
		bound := "at most"
		if f.AtLeast {
			bound = "at least"
		}
		t.row(f.Name, fmt.Sprintf("%s %.3g %s", bound, f.Target, f.Unit), fmt.Sprintf("**%.2f**", f.Value), fmt.Sprintf("%.2f to %.2f", f.Low, f.High), f.verdict())
	}
	return t.String()
}
