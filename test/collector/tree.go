package collector

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// A row is a span in its place in the tree.
type row struct {
	Span
	last []bool // of itself and those above it, from the root: whether it is its parent's last child
}

// A waterfall is a trace as it is drawn: a row for each span, along the time that
// all of them took.
type waterfall struct {
	rows   []row
	began  time.Time
	length time.Duration
}

// layout puts spans in order: below their parents, the earliest first. A span
// whose parent is not among them is a root.
func layout(spans []Span) waterfall {
	spans = slices.Clone(spans)
	slices.SortStableFunc(spans, func(a, b Span) int {
		return cmp.Or(a.Start.Compare(b.Start), a.End.Compare(b.End), cmp.Compare(a.ID, b.ID))
	})
	var w waterfall
	if len(spans) == 0 {
		return w
	}
	w.began = spans[0].Start
	children, have := map[string][]Span{}, map[string]bool{}
	for _, s := range spans {
		have[s.ID] = true
		w.length = max(w.length, s.End.Sub(w.began))
	}
	for _, s := range spans {
		parent := s.Parent
		if !have[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	var add func(parent string, above []bool)
	add = func(parent string, above []bool) {
		for i, s := range children[parent] {
			r := row{Span: s, last: append(slices.Clone(above), i == len(children[parent])-1)}
			w.rows = append(w.rows, r)
			add(s.ID, r.last)
		}
	}
	add("", nil)
	return w
}

// place is where a span begins and ends, of the waterfall's length.
func (w waterfall) place(s Span) (from, to float64) {
	if w.length <= 0 {
		return 0, 0
	}
	from = float64(s.Start.Sub(w.began)) / float64(w.length)
	return from, max(from, float64(s.End.Sub(w.began))/float64(w.length))
}

// treeWidth is that of Tree, columns.
const treeWidth = 120

// Tree draws spans as a waterfall for a terminal: their tree, when each began and
// ended of the time of all, and how long it took. A span whose parent is not among
// them stands at the left.
func Tree(spans []Span) string {
	w := layout(spans)
	if len(w.rows) == 0 {
		return ""
	}
	type line struct{ name, took, exit string }
	lines := make([]line, len(w.rows))
	total := milliseconds(w.length)
	name, took, exit := 0, 0, 0
	for i, r := range w.rows {
		lines[i] = line{name: r.lead() + r.Name, took: milliseconds(r.End.Sub(r.Start))}
		if code, ok := r.Attrs["process.exit.code"]; ok {
			lines[i].exit = "  exit code " + code
		}
		name, took, exit = max(name, utf8.RuneCountInString(lines[i].name)), max(took, len(lines[i].took)), max(exit, len(lines[i].exit))
	}
	name = min(name, treeWidth/2)
	width := max(treeWidth-name-len("  ")-len("  ")-took-exit, len(total)+2)
	var b strings.Builder
	fmt.Fprintf(&b, "%*s  0%*s\n", name, "", width-1, total)
	for i, r := range w.rows {
		from, to := w.place(r.Span)
		fmt.Fprintf(&b, "%-*s  %s  %*s%s\n", name, cut(lines[i].name, name), bar(from, to, width), took, lines[i].took, lines[i].exit)
		if r.Failed {
			children := i+1 < len(w.rows) && len(w.rows[i+1].last) > len(r.last)
			fmt.Fprintln(&b, cut(r.below(children)+"error: "+oneLine(r.Status), treeWidth))
		}
	}
	return b.String()
}

// lead are the branches of the tree before a span's name.
func (r row) lead() string {
	var b strings.Builder
	for i, last := range r.last[1:] {
		switch own := i == len(r.last)-2; {
		case own && last:
			b.WriteString("└─ ")
		case own:
			b.WriteString("├─ ")
		case last:
			b.WriteString("   ")
		default:
			b.WriteString("│  ")
		}
	}
	return b.String()
}

// below are the branches that go on below a span's name.
func (r row) below(children bool) string {
	var b strings.Builder
	for _, last := range r.last[1:] {
		if last {
			b.WriteString("   ")
		} else {
			b.WriteString("│  ")
		}
	}
	if children {
		b.WriteString("│  ")
	} else {
		b.WriteString("   ")
	}
	return b.String()
}

// bar is a bar between two shares of a width in columns, to half a column; one
// that is less than half a column is a thin line.
func bar(from, to float64, width int) string {
	cells := []rune(strings.Repeat(" ", width))
	half := float64(2 * width)
	first, end := int(math.Round(from*half)), int(math.Round(to*half))
	if end <= first {
		first = min(int(from*half), 2*width-1)
		cells[first/2] = []rune("▏▕")[first%2]
		return string(cells)
	}
	for i := first; i < end; i++ {
		switch {
		case cells[i/2] == '▌':
			cells[i/2] = '█'
		case i%2 == 0:
			cells[i/2] = '▌'
		default:
			cells[i/2] = '▐'
		}
	}
	return string(cells)
}

// cut is the beginning of a text that is too long, and says so.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}
