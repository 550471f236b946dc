// Package instance is the instance process: one operating-system process that
// builds its own walls, then runs one module in wazero, and exits with the
// guest's status. It never imports containerd.
//
//	shim                                  instance process
//	 │ ── starts it, Config, descriptors ──▶ │  Main
//	 │                                       │  sandbox.Build
//	 │ ◀──── Located: the module, open ───── │  module.Find
//	 │ ── Compiled: a mount, open ─────────▶ │  Walls.Attach, Drop
//	 │                                       │  load, Walls.Enter
//	 │ ◀──── Ready ───────────────────────── │
//	 │ ── Start ───────────────────────────▶ │  run
//	 │                                       ▼  exit
//
// Instead of any of its messages the process may send an Error, and exits.
package instance

import (
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
)

// Role names of the command line: what the shim re-executes its binary as.
const (
	RoleInstance = "instance"
	RoleCompile  = "compile"
)

// Descriptors the process inherits, besides its standard streams.
const (
	ControlFD = 3 // a connected socket, SOCK_SEQPACKET: [Conn]
	ConfigFD  = 4 // a file with the Config as JSON
	SpansFD   = 5 // the relay's pipe; open when TRACECONTEXT is set
)

// Config is what an instance process is to run, and inside which walls.
type Config struct {
	Sandbox sandbox.Config `json:"sandbox"`
	// Args are the process's arguments; the first one is the entry point.
	Args []string `json:"args"`
	// Env is the guest's whole environment, KEY=VALUE each.
	Env []string `json:"env,omitempty"`
}

// Message is one packet on the control socket. Just one field is set.
type Message struct {
	Error *Error `json:"error,omitempty"`

	// Located comes with the module as a descriptor.
	Located *module.Entry `json:"located,omitempty"`
	Ready   bool          `json:"ready,omitempty"`

	// Compiled goes with the module's entry of the compile cache, a mount that
	// is attached nowhere, as a descriptor. To the compile role it goes with the
	// module and an empty directory.
	Compiled bool   `json:"compiled,omitempty"`
	Start    *Start `json:"start,omitempty"`
}

// Start lets the guest run.
type Start struct {
	// TraceContext is the span that the spans to come belong under, in the form
	// of the TRACECONTEXT variable.
	TraceContext string `json:"traceContext,omitempty"`
}

// Error says why a process cannot run its guest.
type Error struct {
	Text string `json:"text"`
	// Kind is one of the kinds below.
	Kind ErrorKind `json:"kind"`
}

func (e *Error) Error() string { return e.Text }

// ErrorKind is whose fault an [Error] is.
type ErrorKind string

const (
	// BadRequest: the bundle, the image or the module.
	BadRequest ErrorKind = "bad-request"
	// StaleCache: the entry of the compile cache does not fit the module.
	StaleCache ErrorKind = "stale-cache"
	// Internal: the host or this program.
	Internal ErrorKind = "internal"
)
