package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// A document has the parts of a run between two lines each, of which the first says
// which: <!-- bench: PART: begin (make performance) --> and <!-- bench: PART: end -->.
// A part is a section, or one of these.
var parts = map[string]func(*results) string{
	"machine": machineTable,
	"targets": targetTable,
	"figures": userTable,
}

// writeDocuments puts what the output files have into documents. A part that the
// files have nothing of stays as it is.
func writeDocuments(documents, outputs []string) error {
	if len(outputs) == 0 {
		return errors.New("-write: no output file of a run is named")
	}
	r, err := load(outputs...)
	if err != nil {
		return err
	}
	for _, name := range documents {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		filled, err := fill(string(text), r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(name, []byte(filled), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// fill replaces the parts of a document.
func fill(document string, r *results) (string, error) {
	const mark, begin, end = "<!-- bench: ", ": begin (make performance) -->", ": end -->"
	var out strings.Builder
	within := "" // the part that is being replaced or kept
	keep := true
	for line := range strings.Lines(document) {
		rest, marked := strings.CutPrefix(strings.TrimSuffix(line, "\n"), mark)
		part, begins := strings.CutSuffix(rest, begin)
		ended, ends := strings.CutSuffix(rest, end)
		switch {
		case !marked:
			if keep {
				out.WriteString(line)
			}
		case begins && within == "":
			text, err := render(part, r)
			if err != nil {
				return "", err
			}
			within, keep = part, text == ""
			out.WriteString(line)
			if !keep {
				out.WriteString(strings.TrimRight(text, "\n") + "\n")
			}
		case ends && ended == within:
			within, keep = "", true
			out.WriteString(line)
		default:
			return "", fmt.Errorf("out of place: %q", line)
		}
	}
	if within != "" {
		return "", fmt.Errorf("the part %q has no end", within)
	}
	return out.String(), nil
}

// render is a part, empty if there is nothing of it.
func render(part string, r *results) (string, error) {
	if f, ok := parts[part]; ok {
		return f(r), nil
	}
	i := slices.IndexFunc(sections, func(s section) bool { return s.name == part })
	if i < 0 {
		return "", fmt.Errorf("there is no part %q", part)
	}
	if !r.has(part) {
		return "", nil
	}
	return sections[i].table(r), nil
}

// userTable are the three figures that a user cares for.
func userTable(r *results) string {
	start, pss, rates := r.of("start", tiny, 0, total), r.of("memory", wasmC, r.most("memory", wasmC), pss), r.of("rate", tiny, 4, "rate")
	if len(start) == 0 || len(pss) == 0 || len(rates) == 0 {
		return ""
	}
	t := newTable("p50", "this shim", "containerd's with runc", "")
	row := func(name, format string, statistic func([]float64) float64, ours, theirs []float64) {
		t.row(name, fmt.Sprintf(format, statistic(ours)), fmt.Sprintf(format, statistic(theirs)), fmt.Sprintf("× %.2f", statistic(ours)/statistic(theirs)))
	}
	row("a container from create to delete", "%.0f ms", median, start, r.of("start", runcC, 0, total))
	row("containers run in a second, 4 at a time", "%.0f", median, rates, r.of("rate", runcC, 4, "rate"))
	row("memory of one that runs, shim and all", "%.0f KiB", mean, pss, r.of("memory", runcC, r.most("memory", wasmC), "PSS"))
	return t.String()
}
