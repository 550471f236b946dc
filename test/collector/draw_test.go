package collector

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// example is a trace with two services, a failure, an exit code and a span whose
// parent is not there.
func example() []Span {
	began := time.Unix(1_800_000_000, 0)
	at := func(s Span, from, to time.Duration) Span {
		s.TraceID, s.Start, s.End = "4bf92f3577b34da6a3ce929d0e0e4736", began.Add(from), began.Add(to)
		return s
	}
	const ms = time.Millisecond
	return []Span{
		at(Span{ID: "1", Name: "Tasks/Create", Service: "containerd"}, 0, 50*ms),
		at(Span{ID: "2", Parent: "1", Name: "task.create", Service: "shim", Attrs: map[string]string{"container.id": "<c & d>"}}, 10*ms, 40*ms),
		at(Span{ID: "3", Parent: "2", Name: "bundle.load", Service: "shim"}, 10*ms, 10*ms+20*time.Microsecond),
		at(Span{ID: "4", Parent: "2", Name: "module.load", Service: "shim"}, 15*ms, 40*ms),
		at(Span{ID: "5", Parent: "9", Name: "module.run", Service: "shim", Failed: true, Status: "wasm error: unreachable\nwasm stack trace:\n\t<main>" + strings.Repeat("!", 200), Attrs: map[string]string{"process.exit.code": "134"}}, 60*ms, 100*ms),
	}
}

func TestATreeIsAWaterfall(t *testing.T) {
	spans := example()
	got := Tree(spans)
	// To half a column; what is less than that is a thin line.
	want := `
                   0                                                                  100.00 ms
Tasks/Create       ██████████████████████████████████████                                        50.00 ms
└─ task.create            ▐██████████████████████▌                                               30.00 ms
   ├─ bundle.load         ▕                                                                       0.02 ms
   └─ module.load             ▐██████████████████▌                                               25.00 ms
module.run                                                      ▐██████████████████████████████  40.00 ms  exit code 134
   error: wasm error: unreachable wasm stack trace: <main>` + strings.Repeat("!", 61) + `…
`
	if "\n"+got != want {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
	for _, line := range strings.Split(got, "\n") {
		if n := utf8.RuneCountInString(line); n > treeWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	slices.Reverse(spans)
	if Tree(spans) != got {
		t.Errorf("in another order it is another tree:\n%s", Tree(spans))
	}
}

func TestBars(t *testing.T) {
	for _, tt := range []struct {
		from, to float64
		want     string
	}{
		{0, 1, "████"},
		{0, 0.5, "██  "},
		{0.125, 0.5, "▐█  "},
		{0.5, 0.875, "  █▌"},
		{0.5, 0.51, "  ▏ "},
		{0.63, 0.63, "  ▕ "},
		{1, 1, "   ▕"},
		{0, 0, "▏   "},
	} {
		if got := bar(tt.from, tt.to, 4); got != tt.want {
			t.Errorf("%v to %v: got %q, want %q", tt.from, tt.to, got, tt.want)
		}
	}
}

func TestAPictureIsTheSameForTheSameSpansAndItsTextFits(t *testing.T) {
	spans := example()
	got, err := SVG("Of a test & more", spans)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(spans)
	if again, err := SVG("Of a test & more", spans); err != nil || !bytes.Equal(got, again) {
		t.Errorf("in another order it is another picture: %v", err)
	}
	var texts []string
	tooltips := 0
	var at, anchor string
	for d := xml.NewDecoder(bytes.NewReader(got)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Local == "title" {
			tooltips++
		}
		if start.Name.Local != "text" {
			continue
		}
		at, anchor = "", ""
		for _, a := range start.Attr {
			switch a.Name.Local {
			case "x":
				at = a.Value
			case "text-anchor":
				anchor = a.Value
			}
		}
		var text string
		if err := d.DecodeElement(&text, &start); err != nil {
			t.Fatal(err)
		}
		x, err := strconv.ParseFloat(at, 64)
		if err != nil {
			t.Fatal(err)
		}
		from, to := x, x+width(text)
		switch anchor {
		case "end":
			from, to = x-width(text), x
		case "middle":
			from, to = x-width(text)/2, x+width(text)/2
		}
		if from < 0 || to > svgWidth {
			t.Errorf("%q is from %v to %v", text, from, to)
		}
		texts = append(texts, text)
	}
	for _, want := range []string{"Of a test & more", "task.create", "containerd", "shim", "20 µs", "30 ms", "100 ms"} {
		if !slices.Contains(texts, want) {
			t.Errorf("no text %q in %q", want, texts)
		}
	}
	if !slices.ContainsFunc(texts, func(s string) bool {
		return strings.HasPrefix(s, "40 ms · exit code 134 · wasm error: unreachable") && strings.HasSuffix(s, "…")
	}) {
		t.Errorf("no error in %q", texts)
	}
	if tooltips != len(spans)+1 || !strings.Contains(string(got), "container.id = &lt;c &amp; d&gt;") {
		t.Errorf("%d tooltips in\n%s", tooltips, got)
	}
	if _, err := SVG("nothing", nil); err == nil {
		t.Error("a picture of no spans")
	}
}
