package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// These roles run before the program's main function, and before most of its
// packages are initialised: of those an instance process needs few, and in the
// order that Go prescribes they come first. That is 1 ms of its start.
func init() {
	if len(os.Args) != 2 {
		return
	}
	switch os.Args[1] {
	case RoleInstance:
		os.Exit(instanceMain())
	case RoleCompile:
		var st unix.Stat_t
		if unix.Fstat(ControlFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			return // the command of that name
		}
		os.Exit(compileMain())
	}
}

// instanceMain is the instance process. It returns the status to exit with: the guest's,
// see [exitStatus], or 1 when there was no guest to run; the reason has then
// been sent to the shim.
func instanceMain() int {
	p, err := newProcess()
	if err == nil && p.spans != nil {
		p.size, err = openMemorySize(os.NewFile(MemoryFD, "memory"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is started by the shim only: %v\n", RoleInstance, err)
		return 1
	}
	guest, err := p.prepare()
	if err != nil {
		return p.fail(err)
	}
	if guest.large {
		debug.FreeOSMemory() // while it waits: what loading has left behind
	}
	start, _, err := p.control.Receive(0)
	if err != nil || !start.Start {
		return 1 // the shim is gone
	}
	p.control.Close()
	if p.listener >= 0 {
		unix.Close(p.listener) // the shim has its own by now
	}
	if unfiltered(p.config.Args) {
		// None, to see what the other walls stop.
	} else if _, err := p.config.Seccomp.Start.Install(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	guest.environ.add(start.Env)
	return guest.run(context.Background(), p.spans)
}

// compileMain is the compile process: it compiles one module into a directory.
func compileMain() int {
	p, err := newProcess()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is started by the shim only: %v\n", RoleCompile, err)
		return 1
	}
	if err := p.compile(); err != nil {
		return p.fail(err)
	}
	return 0
}

type process struct {
	began   time.Time
	config  Config
	limit   *MemoryLimit
	control *Conn
	spans   *relay.Recorder // nil when the container is not traced
	size    *MemorySize     // as spans
	guest   *relay.Guest    // nil when its guest sends nothing

	listener int // of the seccomp profile; -1: none
}

func newProcess() (*process, error) {
	p := &process{began: time.Now(), control: &Conn{f: os.NewFile(ControlFD, "control"), walled: true}}
	f := os.NewFile(ConfigFD, "config")
	if f == nil {
		return nil, errors.New("no configuration")
	}
	defer f.Close()
	var err error
	if p.config, p.limit, err = readConfig(f); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if n := p.config.MaxProcs; n > 0 && n < runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(n)
	}
	// Without a trace the descriptor is not ours but, by now, the Go runtime's.
	if os.Getenv(relay.TraceContextEnv) != "" {
		if p.spans, err = relay.NewRecorder(os.NewFile(SpansFD, "spans")); err != nil {
			return nil, err
		}
	}
	if p.config.Observe {
		if p.guest, err = relay.NewGuest(os.NewFile(GuestFD, "guest")); err != nil {
			return nil, err
		}
	}
	unix.Umask(int(p.config.Umask))
	// Should the shim have died already, the control socket will say so.
	return p, sandbox.DieWithParent()
}

// fail tells the shim why there will be no guest.
func (p *process) fail(err error) int {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Text: err.Error(), Kind: BadRequest}
	}
	if len(e.Text) > maxMessage/8 {
		e.Text = e.Text[:maxMessage/8] // JSON may need six bytes for one
	}
	_ = p.control.Send(Message{Error: e}) // nobody left to tell otherwise
	return 1
}

// prepare loads the module, once the shim says that the walls are up.
func (p *process) prepare() (*guest, error) {
	m, _, err := p.control.Receive(0)
	if err == nil && m.Load == nil {
		err = errors.New("told to do something else than load")
	}
	if err == nil {
		err = p.confine()
	}
	p.spans.Record(relay.InstancePrepare, p.began, err, nil)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	g, err := load(context.Background(), *m.Load, p.config, p.limit, p.guest)
	p.spans.Record(relay.ModuleLoad, began, err, nil)
	if err != nil {
		return nil, fmt.Errorf("entry point %s: %w", m.Load, err)
	}
	g.memory.show(p.size)
	return g, p.control.Send(Message{Ready: true})
}

// confine is the last the process does before it reads untrusted bytes. From then
// on it can use of the control socket what any descriptor has: read and write.
func (p *process) confine() error {
	if p.config.Seccomp == nil {
		return errors.New("no seccomp filter")
	}
	if err := sandbox.SetRlimits(p.config.Rlimits); err != nil {
		return err
	}
	if unfiltered(p.config.Args) {
		p.listener = -1
		return nil
	}
	if err := probed(p.config.Args); err != nil {
		return err
	}
	var message [64]byte
	var err error
	p.listener, err = p.config.Seccomp.Load.Install()
	if p.listener >= 0 {
		// Whatever the Go runtime may ask of the kernel now waits for the listener's
		// word: it must be told first, and by write(2) alone.
		text := append(strconv.AppendInt(append(message[:0], `{"listener":`...), int64(p.listener), 10), '}')
		_, _, e := unix.RawSyscall(unix.SYS_WRITE, ControlFD, uintptr(unsafe.Pointer(&text[0])), uintptr(len(text))) //nolint:gosec // nothing that allocates
		if e != 0 {
			err = e
		}
	}
	if err != nil {
		return &Error{Text: err.Error(), Kind: Internal}
	}
	return nil
}

func (p *process) compile() error {
	m, files, err := p.control.Receive(1)
	if err == nil && !m.Compile {
		err = errors.New("told to do something else than compile")
	}
	if err == nil {
		err = p.confine()
	}
	if err != nil {
		return err
	}
	began := time.Now()
	size, err := compile(context.Background(), files[0], p.config.Compile)
	p.spans.Record(relay.ModuleTranslate, began, err, map[string]any{relay.ModuleSize: size})
	if err != nil {
		return err
	}
	return p.control.Send(Message{Ready: true})
}
