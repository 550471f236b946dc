package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// A sample is what was measured of one thing, every value of it. A line of the
// output file is one of them.
type sample struct {
	Section string    `json:"section"`
	Who     string    `json:"who"`             // which contender
	Count   int       `json:"count,omitempty"` // of containers that there were
	What    string    `json:"what"`
	Unit    string    `json:"unit"`
	Values  []float64 `json:"values"`
}

func (s *sample) key() [4]any { return [4]any{s.Section, s.Who, s.Count, s.What} }

// A machine is what the figures were taken on, each fact with its name.
type machine []fact

type fact struct{ Name, Value string }

// results are those of a run, or of several.
type results struct {
	Machine machine
	samples []*sample
	spans   []*spanSample
}

// add adds values to a sample.
func (r *results) add(s sample) {
	for i, v := range s.Values {
		s.Values[i] = math.Round(v*1e6) / 1e6
	}
	if have := r.find(s.key()); have != nil {
		have.Values = append(have.Values, s.Values...)
		return
	}
	r.samples = append(r.samples, &s)
}

func (r *results) find(key [4]any) *sample {
	for _, s := range r.samples {
		if s.key() == key {
			return s
		}
	}
	return nil
}

// of are the values of a sample, none if it was not taken.
func (r *results) of(section, who string, count int, what string) []float64 {
	if s := r.find([4]any{section, who, count, what}); s != nil {
		return s.Values
	}
	return nil
}

// who are the contenders that a section has, as they came.
func (r *results) who(section string) (names []string) {
	for _, s := range r.samples {
		if s.Section == section && !slices.Contains(names, s.Who) {
			names = append(names, s.Who)
		}
	}
	return names
}

// counts are those of containers that a section has of a contender.
func (r *results) counts(section, who string) (counts []int) {
	for _, s := range r.samples {
		if s.Section == section && s.Who == who && !slices.Contains(counts, s.Count) {
			counts = append(counts, s.Count)
		}
	}
	return counts
}

func (r *results) has(section string) bool {
	return slices.ContainsFunc(r.samples, func(s *sample) bool { return s.Section == section }) ||
		section == waterfallSection && len(r.spans) > 0
}

// A line is one of the output file: one of these.
type line struct {
	Machine machine     `json:"machine,omitempty"`
	Sample  *sample     `json:"sample,omitempty"`
	Span    *spanSample `json:"span,omitempty"`
	Outcome *outcome    `json:"outcome,omitempty"` // made of the samples, for other programs to read
}

// write writes all of it, with the figures that it makes.
func (r *results) write(w io.Writer) error {
	out := json.NewEncoder(w)
	if err := out.Encode(line{Machine: r.Machine}); err != nil {
		return err
	}
	for _, s := range r.samples {
		if err := out.Encode(line{Sample: s}); err != nil {
			return err
		}
	}
	for _, s := range r.spans {
		if err := out.Encode(line{Span: s}); err != nil {
			return err
		}
	}
	for _, f := range outcomes(r) {
		if err := out.Encode(line{Outcome: &f}); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) save(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	err = r.write(f)
	return cmp.Or(err, f.Close())
}

// with is a machine with what another run says of it: of a fact that is not the same
// both.
func (m machine) with(other machine) machine {
	m = slices.Clone(m)
	for _, f := range other {
		i := slices.IndexFunc(m, func(have fact) bool { return have.Name == f.Name })
		switch {
		case i < 0:
			m = append(m, f)
		case !slices.Contains(strings.Split(m[i].Value, "; "), f.Value):
			m[i].Value += "; " + f.Value
		}
	}
	return m
}

// load reads files that were saved: of a section that several have, the last one's.
func load(names ...string) (*results, error) {
	all := &results{}
	for _, name := range names {
		one, err := loadOne(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all.Machine = all.Machine.with(one.Machine)
		all.samples = slices.DeleteFunc(all.samples, func(s *sample) bool { return one.has(s.Section) })
		if len(one.spans) > 0 {
			all.spans = nil
		}
		all.samples, all.spans = append(all.samples, one.samples...), append(all.spans, one.spans...)
	}
	return all, nil
}

func loadOne(name string) (*results, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &results{}
	in := json.NewDecoder(bufio.NewReader(f))
	in.DisallowUnknownFields()
	for n := 1; ; n++ {
		var l line
		if err := in.Decode(&l); err == io.EOF {
			break
		} else if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if l.Machine != nil {
			r.Machine = l.Machine
		}
		if l.Sample != nil {
			r.samples = append(r.samples, l.Sample)
		}
		if l.Span != nil {
			r.spans = append(r.spans, l.Span)
		}
	}
	if len(r.Machine) == 0 || len(r.samples)+len(r.spans) == 0 {
		return nil, fmt.Errorf("not the output of a run")
	}
	return r, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
