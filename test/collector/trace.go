package collector

import "slices"

// Above are the spans of a trace between one of them and its root, the nearest
// first, each as SERVICE NAME.
func Above(trace []Span, s Span) (names []string) {
	for range trace {
		i := slices.IndexFunc(trace, func(p Span) bool { return p.ID == s.Parent })
		if i < 0 {
			break
		}
		s = trace[i]
		names = append(names, s.Service+" "+s.Name)
	}
	return names
}

// Orphans are the names of the spans of a trace whose parents are not in it. Each
// service sends its spans at times of its own, so there may be some for a while.
func Orphans(trace []Span) (names []string) {
	ids := map[string]bool{"": true}
	for _, s := range trace {
		ids[s.ID] = true
	}
	for _, s := range trace {
		if !ids[s.Parent] {
			names = append(names, s.Service+" "+s.Name)
		}
	}
	return names
}
