package collector

import (
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

//go:embed svg.tmpl
var svgText string

var svgTemplate = template.Must(template.New("svg").Parse(svgText))

// Of a picture, pixels. Text is monospaced, so that its width is known: charWidth
// is that of the widest font in the template's list at its size.
const (
	svgWidth  = 1040
	svgMargin = 24
	charWidth = 7.3
	rowHeight = 20
	axisTop   = 84 // above the first row
	indent    = 16
	noteWidth = 8 // between a bar and its text
	barHeight = 12
	minBar    = 2
	longest   = 60 // title or name, characters
)

// serviceColors are those of services, in the order they come into the trace.
var serviceColors = []string{"#8250df", "#57606a", "#0a7ea4", "#9a6700", "#1a7f37"}

type svgRow struct {
	Name, Title, Note     string
	X, Y                  float64 // of the name
	BarX, BarY, BarWidth  float64
	NoteX                 float64
	Anchor, Color, Branch string
	Failed, Odd, Inside   bool
}

type svgLabel struct {
	X, Y        float64
	Text, Color string
}

// SVG draws spans as a waterfall, the same for the same spans. A span that failed
// is red and has its error beside it; every span has its attributes as its tooltip.
func SVG(title string, spans []Span) ([]byte, error) {
	w := layout(spans)
	if len(w.rows) == 0 {
		return nil, fmt.Errorf("draw %q: no spans", title)
	}
	colors, legend := services(w.rows)
	names := 0.0
	for _, r := range w.rows {
		names = max(names, float64(svgMargin+indent*(len(r.last)-1))+width(cut(r.Name, longest)))
	}
	left := math.Ceil(names) + 20
	right := float64(svgWidth - svgMargin)
	x := func(share float64) float64 { return left + share*(right-left) }

	picture := struct {
		Width, Height, Right, Foot, Margin, AxisTop, Bottom, RowHeight, BarHeight float64
		Title, Subtitle                                                           string
		Legend, Ticks                                                             []svgLabel
		Rows                                                                      []svgRow
	}{
		Width: svgWidth, Right: svgWidth - 1, Margin: svgMargin, AxisTop: axisTop, RowHeight: rowHeight, BarHeight: barHeight,
		Title:    cut(oneLine(title), longest),
		Subtitle: fmt.Sprintf("trace %s · %d spans · %s", w.rows[0].TraceID, len(w.rows), short(w.length)),
		Legend:   legend,
	}
	picture.Bottom = float64(axisTop + rowHeight*len(w.rows))
	picture.Height, picture.Foot = picture.Bottom+16, picture.Bottom+15
	step := tick(w.length)
	for at := time.Duration(0); at <= w.length; at += step {
		share := float64(at) / float64(max(w.length, 1))
		picture.Ticks = append(picture.Ticks, svgLabel{X: round(x(share)), Y: axisTop - 8, Text: short(at)})
	}
	for i, r := range w.rows {
		from, to := w.place(r.Span)
		y := float64(axisTop + rowHeight*i)
		row := svgRow{
			Name: cut(r.Name, longest), Title: tooltip(r.Span), Note: short(r.End.Sub(r.Start)), Failed: r.Failed, Odd: i%2 == 1,
			X: float64(svgMargin + indent*(len(r.last)-1)), Y: y + rowHeight/2 + 4,
			BarX: round(x(from)), BarY: y + (rowHeight-barHeight)/2, BarWidth: round(max(minBar, x(to)-x(from))),
			Color: colors[r.Service], Branch: branch(w.rows, i),
		}
		if code, ok := r.Attrs["process.exit.code"]; ok {
			row.Note += " · exit code " + code
		}
		if r.Failed {
			row.Note += " · " + oneLine(r.Status)
		}
		// Beside the bar, on the side that has more room if the text does not fit on
		// its right, or else in it.
		need := width(row.Note)
		row.NoteX, row.Anchor = row.BarX+row.BarWidth+noteWidth, "start"
		room := right - row.NoteX
		if before := row.BarX - noteWidth - left; need > room && before > room {
			row.NoteX, row.Anchor, room = row.BarX-noteWidth, "end", before
		}
		if within := row.BarWidth - 2*noteWidth; need > room && within > room {
			row.NoteX, row.Anchor, room = row.BarX+row.BarWidth-noteWidth, "end", within
			row.Inside = true
		}
		row.Note = cut(row.Note, max(1, int(room/charWidth)))
		row.NoteX = round(row.NoteX)
		picture.Rows = append(picture.Rows, row)
	}
	var b strings.Builder
	if err := svgTemplate.Execute(&b, picture); err != nil {
		return nil, fmt.Errorf("draw %q: %w", title, err)
	}
	return []byte(b.String()), nil
}

// services gives each service its colour and its place in the legend, at the
// right of the picture's head.
func services(rows []row) (map[string]string, []svgLabel) {
	colors := map[string]string{}
	var names []string
	for _, r := range rows {
		if _, ok := colors[r.Service]; !ok {
			colors[r.Service] = serviceColors[len(names)%len(serviceColors)]
			names = append(names, r.Service)
		}
	}
	var legend []svgLabel
	at := float64(svgWidth - svgMargin)
	for _, name := range slices.Backward(names) {
		at -= width(name)
		legend = append(legend, svgLabel{X: round(at), Y: 33, Text: name, Color: colors[name]})
		at -= 36
	}
	slices.Reverse(legend)
	return colors, legend
}

// branch is the line from a row to its parent's: down from there, and to the right.
func branch(rows []row, i int) string {
	depth := len(rows[i].last)
	if depth == 1 {
		return ""
	}
	parent := i - 1
	for len(rows[parent].last) >= depth {
		parent--
	}
	x := svgMargin + indent*(depth-2) + 5
	return fmt.Sprintf("M%d %dV%dh7", x, axisTop+rowHeight*parent+rowHeight-3, axisTop+rowHeight*i+rowHeight/2)
}

// tooltip is all that a span says.
func tooltip(s Span) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s), %s", s.Name, s.Service, short(s.End.Sub(s.Start)))
	if s.Failed {
		fmt.Fprintf(&b, "\nerror: %s", s.Status)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Attrs)) {
		fmt.Fprintf(&b, "\n%s = %s", k, s.Attrs[k])
	}
	return b.String()
}

// tick is the step of the axis, for five to twelve of them.
func tick(length time.Duration) time.Duration {
	step := time.Microsecond
	for {
		for _, by := range []time.Duration{1, 2, 5} {
			if length/(step*by) <= 10 {
				return step * by
			}
		}
		step *= 10
	}
}

// short is a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/float64(time.Millisecond))
	default:
		return fmt.Sprintf("%.3g s", d.Seconds())
	}
}

// width is that of a text, pixels.
func width(s string) float64 { return charWidth * float64(utf8.RuneCountInString(s)) }

func round(v float64) float64 { return math.Round(v*10) / 10 }
