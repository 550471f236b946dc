package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// Main is the instance process. It returns the status to exit with: the guest's,
// see [exitStatus], or 1 when there was no guest to run; the reason has then
// been sent to the shim.
func Main() int {
	p, err := newProcess()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is started by the shim only: %v\n", RoleInstance, err)
		return 1
	}
	guest, err := p.prepare()
	if err != nil {
		return p.fail(err)
	}
	start, _, err := p.control.Receive(0)
	if err != nil || start.Start == nil {
		return 1 // the shim is gone
	}
	p.control.Close()
	p.spans.Under(start.Start.TraceContext)
	return guest.run(context.Background(), p.spans)
}

// CompileMain is the compile process: inside the same walls as an instance, but
// for a root file system, it compiles one module into a directory.
func CompileMain() int {
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
	control *Conn
	spans   *telemetry.Recorder // nil when the container is not traced
}

func newProcess() (*process, error) {
	p := &process{began: time.Now(), control: &Conn{os.NewFile(ControlFD, "control")}}
	f := os.NewFile(ConfigFD, "config")
	if f == nil {
		return nil, errors.New("no configuration")
	}
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(data, &p.config); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if tc := os.Getenv(telemetry.TraceContextEnv); tc != "" {
		p.spans, err = telemetry.NewRecorder(os.NewFile(SpansFD, "spans"), tc)
	}
	return p, err
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

// prepare builds the walls and loads the module inside them.
func (p *process) prepare() (_ *guest, err error) {
	walls, entry, f, err := p.build()
	p.spans.Record(telemetry.InstancePrepare, p.began, err)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	began := time.Now()
	g, err := load(context.Background(), f, entry, p.config)
	p.spans.Record(telemetry.ModuleLoad, began, err, telemetry.ModulePath.String(entry.Path))
	if err != nil {
		return nil, err
	}
	if err := walls.Enter(); err != nil {
		return nil, err
	}
	if err := sandbox.DieWithParent(); err != nil {
		return nil, err
	}
	return g, p.control.Send(Message{Ready: true})
}

// build builds the walls up to the point where the module may be read, and
// opens it as the user that the container runs as.
func (p *process) build() (_ *sandbox.Walls, entry module.Entry, f *os.File, err error) {
	walls, err := sandbox.Build(p.config.Sandbox)
	if err != nil {
		return nil, entry, nil, err
	}
	cfg := p.config
	entry, located, err := module.Find(walls.Open, cfg.Args[0], cfg.Sandbox.Cwd, lookupEnv(cfg.Env, "PATH"))
	if err != nil {
		return nil, entry, nil, err
	}
	err = p.control.Send(Message{Located: &entry}, located)
	located.Close()
	if err != nil {
		return nil, entry, nil, err
	}
	_, files, err := p.control.Receive(1)
	if err != nil {
		return nil, entry, nil, err
	}
	err = walls.Attach(files[0])
	files[0].Close()
	if err != nil {
		return nil, entry, nil, err
	}
	if err := walls.Drop(); err != nil {
		return nil, entry, nil, err
	}
	f, err = walls.Open(entry.Path, os.O_RDONLY)
	if err != nil {
		return nil, entry, nil, fmt.Errorf("entry point %s: as uid %d: %w", entry.Path, cfg.Sandbox.User.UID, errors.Unwrap(err))
	}
	return walls, entry, f, nil
}

// compile is prepare for the compile process.
func (p *process) compile() error {
	walls, err := sandbox.Build(p.config.Sandbox)
	if err != nil {
		return err
	}
	_, files, err := p.control.Receive(2)
	if err != nil {
		return err
	}
	err = walls.Attach(files[1])
	files[1].Close()
	if err != nil {
		return err
	}
	if err := walls.Drop(); err != nil {
		return err
	}
	if err := sandbox.DieWithParent(); err != nil {
		return err
	}
	began := time.Now()
	size, err := compile(context.Background(), files[0])
	p.spans.Record(telemetry.ModuleCompile, began, err, telemetry.ModuleSize.Int64(size))
	if err != nil {
		return err
	}
	return p.control.Send(Message{Ready: true})
}

// lookupEnv returns the last value of a variable, which is the one that counts
// for getenv(3) of most C libraries' descendants that build a map.
func lookupEnv(env []string, name string) (value string) {
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}
