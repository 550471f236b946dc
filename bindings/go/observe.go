// Package observe lets a WASI guest make spans, logs and metrics, in the trace of its
// container, by the functions that containerd-shim-wazero provides to it.
//
//	defer observe.Span("handle request", "path:/")()
//	observe.Log(observe.Info, "half way")
//	observe.Metric("requests:1|c|#code:200")
//
// Nothing here fails or waits. Without tracing the calls come to nothing, and so do
// those beyond the bounds: see docs/telemetry.md, "Spans of a guest". Elsewhere than in
// a guest (GOOS=wasip1) nothing is done.
package observe

import "strings"

// Level is how much a log matters.
type Level uint32

// Levels, from the one that matters most.
const (
	Error Level = iota + 1
	Warn
	Info
	Debug
	Trace
)

// statsd is the one format of metrics there is.
const statsd = 1

// Span begins a span below the one that was begun last, and returns what ends it.
// Spans end in the reverse order of their beginning. For tags see [Tags].
func Span(name string, tags ...string) (end func()) {
	spanEnter(name)
	Tags(tags...)
	return spanExit
}

// Tags sets attributes of the span that was begun last, or without one of the guest's
// run: KEY:VALUE each, or KEY alone for true. They can have no comma.
func Tags(tags ...string) {
	if len(tags) > 0 {
		spanTags(strings.Join(tags, ","))
	}
}

// Log is an event of the span that was begun last, or without one of the guest's run.
func Log(level Level, message string) { log(uint32(level), message) }

// Metric records a message of statsd: NAME:VALUE|TYPE, with |@RATE and |#TAG:VALUE,...
// behind it if need be. TYPE is c for a counter, g for a gauge, ms and h for histograms.
func Metric(message string) { metric(statsd, message) }
