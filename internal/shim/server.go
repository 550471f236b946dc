// Package shim is what containerd talks to: the command line, the task service
// and the processes behind it. It never imports wazero.
package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/shim/program"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

const (
	// RuntimeName is what a container's runtime is called for containerd to
	// start this shim.
	RuntimeName = "io.containerd.wazero.v1"

	runtimeBinary = "containerd-shim-wazero-v1"
)

// Run is the part of the program that containerd starts: start, delete, -info
// and the shim itself. It exits the process when it fails.
func Run(ctx context.Context) {
	var err error
	if s, ok := parseStart(os.Args[1:]); ok {
		var serving *server
		if serving, err = s.run(ctx, os.Stdin); serving != nil {
			err = serving.run(ctx)
		}
	} else {
		shim.RunShim(ctx, manager{})
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s", RuntimeName, err)
		os.Exit(1)
	}
}

// A server is the shim itself, which a `start` has become.
type server struct {
	id, namespace      string
	debug              bool
	containerd, events string // addresses: of its API, and where it takes events
	socket             *ownSocket
	began, answered    time.Time // the `start`
}

// run serves containerd until the last container is gone, or a signal says so.
func (s *server) run(ctx context.Context) error {
	ctx, ended := context.WithCancel(ctx)
	defer ended()
	lateGarbage(ctx)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2) // as containerd's own, on however large a machine: each has memory of its own
	}
	// Asked for before there can be any. One of each is enough: they say that there is
	// something, not how much.
	children, end, dump := make(chan os.Signal, 1), make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signal.Notify(end, unix.SIGINT, unix.SIGTERM)
	signal.Notify(dump, unix.SIGUSR1)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) // or else it would end a shim whose log nobody reads; ignored, it would be in all children
	if err := reaper.SetSubreaper(1); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	if err := setLog(s.debug); err != nil {
		return err
	}
	ctx = log.WithLogger(namespaces.WithNamespace(ctx, s.namespace), log.L.WithField("runtime", RuntimeName))
	ctx, stop := shutdown.WithShutdown(ctx)
	defer stop.Shutdown()
	tasks, err := s.tasks(ctx, stop)
	if err != nil {
		return err
	}
	rpc, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(intercept), ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return err
	}
	taskapi.RegisterTTRPCTaskService(rpc, tasks)
	registerTaskV2(rpc, tasks)
	go func() { // ends with the process
		if err := rpc.Serve(ctx, s.socket.listener); err != nil {
			log.G(ctx).WithError(err).Fatal("serve")
		}
	}()
	for {
		select {
		case <-ctx.Done(): // all callbacks have been
			if err := ctx.Err(); !errors.Is(err, shutdown.ErrShutdown) {
				return err
			}
			return nil
		case <-children:
			if err := reaper.Reap(); err != nil {
				log.G(ctx).WithError(err).Error("reap")
			}
		case <-end:
			stop.Shutdown()
		case <-dump:
			log.G(ctx).Infof("=== BEGIN goroutine stack dump ===\n%s\n=== END goroutine stack dump ===", stacks()) // as containerd's own
		}
	}
}

// stacks are those of all goroutines.
func stacks() []byte {
	for size := 16 << 10; ; size *= 2 {
		b := make([]byte, size)
		if n := runtime.Stack(b, true); n < size {
			return b[:n]
		}
	}
}

// tasks is the task service, for as long as stop has not been told to end it.
func (s *server) tasks(ctx context.Context, stop shutdown.Service) (taskapi.TTRPCTaskService, error) {
	bundle, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	state := stateDir(bundle)
	outbox, err := newOutbox(s.events, s.namespace)
	if err != nil {
		return nil, err
	}
	stage, err := newStage(state)
	if err != nil {
		return nil, err
	}
	stop.RegisterCallback(func(context.Context) error { return s.socket.remove() }) // ended by a signal
	linux := newLinux(ctx, outbox)
	stop.RegisterCallback(func(context.Context) error {
		if err := linux.close(); err != nil {
			return err
		}
		return outbox.close()
	})
	tasks := &service{
		host: &host{
			stage: stage, cache: newCache(state), compiler: newCompiler(stage, state), outbox: outbox, state: state,
			containerd: s.containerd, namespace: s.namespace,
		},
		linux: linux,
		shutdown: func() {
			// It is gone when Shutdown answers: containerd is about to tell the user
			// that all is.
			if err := s.socket.remove(); err != nil {
				log.L.WithError(err).Error("remove socket")
			}
			stop.Shutdown()
		},
		tasks: map[string]*task{},
	}
	watching, unwatch := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); tasks.watch(watching) }()
	stop.RegisterCallback(func(context.Context) error {
		unwatch()
		<-watched
		return nil
	})
	if provider, guests, flush := startTelemetry(s.namespace + "/" + s.id); provider != nil {
		stop.RegisterCallback(flush)
		tasks.host.observe = guests
		boot := telemetry.Boot{Began: s.began, Answered: s.answered, Served: time.Now()}
		return newTracedService(tasks, provider, s.namespace, tasks.identify, boot), nil
	}
	return tasks, nil
}

// newStage is for instance and compile processes, whose program is below the [stateDir]
// that is given.
func newStage(state string) (*sandbox.Stage, error) {
	instances, err := program.Install(filepath.Join(state, "bin"))
	if err != nil {
		log.L.WithError(err).Warn("instances will start slower, from the shim's own program")
	}
	if instances == "" {
		instances = executable
	}
	return sandbox.NewStage(instances, programName(instance.RoleInstance), programName(instance.RoleCompile))
}

// newCache is the compile cache of the node whose [stateDir] is given.
func newCache(state string) *module.Cache {
	c := module.NewCache(filepath.Join(state, "modules"), instance.CacheVersion())
	c.Wait = func(ctx context.Context, wait func(context.Context) error) error {
		return telemetry.Stage(ctx, telemetry.CompilerWait, wait)
	}
	c.Limits = func() module.Limits {
		h, _ := readHostFile() // Create says what is wrong with it
		return h.cache.limits()
	}
	c.Tell = tellCache
	return c
}

// tellCache tells what happens to an entry of the cache.
func tellCache(ctx context.Context, e module.Event) {
	l := log.G(ctx).WithField("entry", e.Entry)
	switch e.Kind {
	case module.Corrupt:
		l.WithError(e.Err).Warn("compile cache: entry dropped, compiling again")
		telemetry.CacheCorrupt(ctx)
	case module.Evicted:
		l.WithField("bytes", e.Size).Debug("compile cache: entry removed to make room")
		telemetry.CacheEvicted(ctx)
	case module.Unusable:
		l.WithError(e.Err).Warn("compile cache: cannot be used, the module is compiled for this container alone")
		telemetry.CacheUnusable(ctx)
	}
}

// stateDir is where the shim keeps what outlives a container: in the root
// directory of the containerd that started it, to which every bundle has a link.
func stateDir(bundle string) string {
	const fallback = "/var/lib/" + runtimeBinary
	work, err := os.Readlink(filepath.Join(bundle, "work")) // ROOT/PLUGIN/NAMESPACE/ID
	if err != nil || !filepath.IsAbs(work) {
		return fallback
	}
	return filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(work))), RuntimeName)
}

var errPanic = &telemetry.Error{Type: telemetry.ErrPanic.Type, Text: "internal error: the handler panicked, see the shim's log"}

// intercept is between the wire and the service: it turns errors into statuses and
// stops panics.
func intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (resp any, err error) {
	c := &call{method: strings.TrimPrefix(info.FullMethod, "/"), log: log.G(ctx)}
	ctx = context.WithValue(ctx, callKey{}, c)
	// ttrpc does not: a panic in one call would end every container of the shim.
	defer func() {
		if v := recover(); v != nil {
			c.log.Errorf("%s: panic: %v\n%s", info.FullMethod, v, debug.Stack())
			resp, err = nil, toStatus(fmt.Errorf("%s: %w", info.FullMethod, errPanic))
		}
	}()
	resp, err = method(ctx, unmarshal)
	return resp, toStatus(err)
}

// toStatus puts an error on the wire: its class as the code, its text as the
// message. errgrpc would send every error that it wraps as well, and each hop to
// the user would print the class once more.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	class := errdefs.Resolve(err)
	message := errorText(strings.TrimSuffix(err.Error(), ": "+class.Error()))
	if c, ok := class.(interface{ WithMessage(string) error }); ok {
		err = c.WithMessage(message)
	} else if message != err.Error() {
		err = fmt.Errorf("%s: %w", message, class)
	}
	return errgrpc.ToGRPC(err)
}

// maxErrorText bounds an error that is answered, bytes: ttrpc has room for 4 MiB, and
// containerd's log and a pod's events will repeat it.
const maxErrorText = 16 << 10

// errorText is what can be said of an error whose text may come from anywhere: a
// hook, a logger, a name in an image. ttrpc hangs up on an answer that is not
// UTF-8, and containerd takes the shim, with all its containers, for dead.
func errorText(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText/2] + " [...] " + s[len(s)-maxErrorText/2:] // what it is about, and the reason
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' { // would have a say in the user's terminal
			return utf8.RuneError
		}
		return r // the same for what is no UTF-8
	}, s)
}
