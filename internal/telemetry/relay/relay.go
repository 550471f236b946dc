// Package relay brings the spans of an instance process to the shim.
//
// The process cannot reach a collector from its namespaces. It writes each span,
// once it has ended, as a line of JSON to a pipe it inherits; the shim reads it
// and makes the span.
//
// The shim trusts none of it: what a span is called, what it may say and what it
// is below is for the shim to know, and the rest is bounded.
//
// This package is all of telemetry that an instance process has, so it imports
// nothing that takes time to start.
package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// TraceContextEnv is the variable in the environment of every process the shim
// re-executes that names the span it was started under. Its value is a JSON
// object of the W3C headers:
//
//	{"traceparent":"00-…","tracestate":"…","baggage":"…"}
//
// A bare traceparent is read as well.
//
// See https://www.w3.org/TR/trace-context/ and https://www.w3.org/TR/baggage/.
const TraceContextEnv = "TRACECONTEXT"

// Names of the spans a process may send.
const (
	InstancePrepare   = "instance.prepare"
	ModuleTranslate   = "module.translate"
	ModuleLoad        = "module.load"
	ModuleInstantiate = "module.instantiate"
	ModuleStart       = "module.start"
	ModuleRun         = "module.run"
)

// Attributes that such a span may have.
const (
	ModuleSize     = "wasm.module.size"
	ModuleFunction = "wasm.module.function"
	ExitCode       = "process.exit.code"
)

const (
	// MaxFrame bounds a line, bytes: it is PIPE_BUF. A write of more may be made in
	// part, see pipe(7), and what follows would read as the rest of it.
	MaxFrame = 4 << 10
	// MaxText bounds each text in a frame, bytes.
	MaxText = 1 << 10
)

// A Frame is a span on the wire.
type Frame struct {
	Name      string         `json:"name"`
	Start     int64          `json:"start"` // nanoseconds since 1970
	End       int64          `json:"end"`
	Attrs     map[string]any `json:"attrs,omitempty"` // strings, booleans, whole numbers
	Error     string         `json:"error,omitempty"`
	ErrorType string         `json:"errorType,omitempty"`
}

// A Recorder is the end of the relay in the instance process. A nil one records
// nothing.
type Recorder struct {
	pipe *os.File // keeps fd open
	fd   int      // asked for once: Fd makes a file block again
}

// NewRecorder records to pipe.
func NewRecorder(pipe *os.File) (*Recorder, error) {
	// A shim that does not read must not hold up the guest.
	fd := int(pipe.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return &Recorder{pipe: pipe, fd: fd}, nil
}

// Record writes a span that began at start and ends now. Texts in it are cut to
// [MaxText], and to less where the line would be longer than [MaxFrame]. One that
// the pipe has no room for is lost.
func (r *Recorder) Record(name string, start time.Time, err error, attrs map[string]any) {
	if r == nil {
		return
	}
	f := Frame{Name: name, Start: start.UnixNano(), End: time.Now().UnixNano(), Attrs: attrs}
	if err != nil {
		f.Error, f.ErrorType = err.Error(), errorType(err)
	}
	line := f.line()
	if line == nil {
		return
	}
	// One write of the descriptor itself: os.File would wait for room.
	_, _ = unix.Write(r.fd, line)
}

// errorType is what an error calls its type with a method of that name, as package
// semconv of OpenTelemetry has it; or else its type, without what wraps it.
func errorType(err error) string {
	if typed, ok := errors.AsType[interface {
		error
		ErrorType() string
	}](err); ok {
		return typed.ErrorType()
	}
	for u := err; u != nil; u = errors.Unwrap(u) {
		err = u
	}
	return fmt.Sprintf("%T", err)
}

// line is the frame as it is written, or nil if it has no such form.
func (f Frame) line() []byte {
	f.Attrs = maps.Clone(f.Attrs)
	for limit := MaxText; limit > 0; limit /= 2 { // JSON may need six bytes for one
		f.Error, f.ErrorType = cut(f.Error, limit), cut(f.ErrorType, limit)
		for k, v := range f.Attrs {
			if text, ok := v.(string); ok {
				f.Attrs[k] = cut(text, limit)
			}
		}
		line, err := json.Marshal(f)
		if err != nil {
			return nil
		}
		if len(line) < MaxFrame {
			return append(line, '\n')
		}
	}
	return nil
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
