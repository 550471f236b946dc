// Package instance is the instance process: one operating-system process that
// runs one module in wazero, and exits with the guest's status. It never imports
// containerd.
//
// Its walls the shim builds around it, from outside: see package sandbox.
//
//	shim                                  instance process
//	 │ ── starts it, Config, descriptors ──▶ │  Main
//	 │    takes the host's files away        │
//	 │ ── Load ────────────────────────────▶ │  load
//	 │ ◀──── Ready ───────────────────────── │
//	 │    gives it the container's root      │
//	 │ ── Start ───────────────────────────▶ │  run
//	 │                                       ▼  exit
//
// Instead of Ready the process may send an Error, and exits.
package instance

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/seccomp"
)

// Role names of the command line: what the shim re-executes its binary as.
const (
	RoleInstance = "instance"
	RoleCompile  = "compile"
)

// Descriptors the process inherits, besides its standard streams.
const (
	ControlFD = 3 // a connected socket, SOCK_SEQPACKET: [Conn]
	ConfigFD  = 4 // a file of the Config and the MemoryLimit: [NewConfig]
	SpansFD   = 5 // the relay's pipe; open when TRACECONTEXT is set
	MemoryFD  = 6 // a file of the MemorySize, as SpansFD: [NewMemorySize]; not in a compile process
	GuestFD   = 7 // the pipe for what the guest sends; open when Config.Observe is set
)

// Config is what an instance process gives its guest.
type Config struct {
	// Args are the process's arguments; the first one is replaced by the entry
	// point's.
	Args []string `json:"args"`
	// Env is the guest's whole environment, KEY=VALUE each.
	Env   []string `json:"env,omitempty"`
	Cwd   string   `json:"cwd"`
	Umask uint32   `json:"umask"`

	Rlimits []specs.POSIXRlimit `json:"rlimits,omitempty"`
	// MaxProcs bounds how many threads run Go code at the same time; 0 for as many
	// as there are processors. The runtime of Go would find it in cgroupfs, where
	// there is one.
	MaxProcs int `json:"maxProcs,omitempty"`
	// Seccomp are the filters that the process installs, one before it reads the
	// module, one before it runs it.
	Seccomp *seccomp.Filters `json:"seccomp"`
	// Engine is what runs the guest. An interpreter gets the module itself with
	// [Message.Load], as a descriptor.
	Engine Engine `json:"engine,omitempty"`
	// Observe says that the guest may make spans of its own.
	Observe bool `json:"observe,omitempty"`
	// Compile bounds a compile process.
	Compile CompileBounds `json:"compile,omitzero"`
}

// An Engine runs a module: one of the engines of wazero.
type Engine string

const (
	// Compiler runs what the module has been compiled to.
	Compiler Engine = "compiler"
	// Interpreter runs it as it is: slower by far, and with none of the compiler's faults.
	Interpreter Engine = "interpreter"
)

// Message is one packet on the control socket. Just one field is set, and Env with
// Start.
type Message struct {
	// Load has the process load the module, which is compiled by now, or comes with it.
	Load *module.Entry `json:"load,omitempty"`
	// Compile goes to a compile process with the module as a descriptor.
	Compile bool `json:"compile,omitempty"`
	// Start lets the guest run, with Env in its environment too.
	Start bool     `json:"start,omitempty"`
	Env   []string `json:"env,omitempty"`

	// Listener is the descriptor, of the process, for what its seccomp profile
	// leaves to a listener. It comes before Ready.
	Listener *int   `json:"listener,omitempty"`
	Ready    bool   `json:"ready,omitempty"`
	Error    *Error `json:"error,omitempty"`
}

// Error says why a process cannot run its guest.
type Error struct {
	Text string `json:"text"`
	// Kind is one of the kinds below.
	Kind ErrorKind `json:"kind"`
}

func (e *Error) Error() string { return e.Text }

// ErrorType is what a span calls it.
func (e *Error) ErrorType() string { return string(e.Kind) }

// ErrorKind is whose fault an [Error] is.
type ErrorKind string

const (
	// BadRequest is the fault of the bundle, the image or the module.
	BadRequest ErrorKind = "bad-request"
	// StaleCache says that the entry of the compile cache does not fit the module.
	StaleCache ErrorKind = "stale-cache"
	// Internal is the fault of the host or this program.
	Internal ErrorKind = "internal"
)
