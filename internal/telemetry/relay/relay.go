// Package relay brings the spans of an instance process to the shim.
//
// The process cannot reach a collector from its namespaces. It writes each span,
// once it has ended, as a line of JSON to a pipe it inherits; the shim reads it
// and makes the span.
//
// The shim trusts none of it: a frame names its parent by what the shim handed
// out, and everything else in it is bounded.
//
// This package is all of telemetry that an instance process has, so it imports
// nothing that takes time to start.
package relay

import (
	"encoding/json"
	"fmt"
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
	ModuleCompile     = "module.compile"
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
	// MaxFrame bounds a line, bytes.
	MaxFrame = 64 << 10
)

// A Frame is a span on the wire.
type Frame struct {
	Name      string         `json:"name"`
	Parent    string         `json:"parent"` // the TRACECONTEXT that the process was given
	Start     int64          `json:"start"`  // nanoseconds since 1970
	End       int64          `json:"end"`
	Attrs     map[string]any `json:"attrs,omitempty"` // strings, booleans, whole numbers
	Error     string         `json:"error,omitempty"`
	ErrorType string         `json:"errorType,omitempty"`
}

// A Recorder is the end of the relay in the instance process. A nil one records
// nothing.
type Recorder struct {
	pipe   *os.File // keeps fd open
	fd     int      // asked for once: Fd makes a file block again
	parent string
}

// NewRecorder records to pipe, under the span that traceContext names.
func NewRecorder(pipe *os.File, traceContext string) (*Recorder, error) {
	// A shim that does not read must not hold up the guest.
	fd := int(pipe.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return &Recorder{pipe: pipe, fd: fd, parent: traceContext}, nil
}

// Under makes the span that traceContext names the parent of those to come.
func (r *Recorder) Under(traceContext string) {
	if r != nil {
		r.parent = traceContext
	}
}

// Record writes a span that began at start and ends now. One that the pipe has
// no room for is lost.
func (r *Recorder) Record(name string, start time.Time, err error, attrs map[string]any) {
	if r == nil {
		return
	}
	f := Frame{Name: name, Parent: r.parent, Start: start.UnixNano(), End: time.Now().UnixNano(), Attrs: attrs}
	if err != nil {
		f.Error, f.ErrorType = cut(err.Error(), 4<<10), fmt.Sprintf("%T", err)
	}
	line, err := json.Marshal(f)
	if err != nil || len(line) >= MaxFrame {
		return
	}
	// One write of the descriptor itself: os.File would wait for room.
	_, _ = unix.Write(r.fd, append(line, '\n'))
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
