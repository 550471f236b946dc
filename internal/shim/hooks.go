package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// Hooks are programs of the host that a specification has run at points of a
// container's life:
//
//	prestart, createRuntime   in Create: the process and its namespaces are there
//	createContainer           after those, in the container's namespaces
//	poststart                 in Start
//	poststop                  after Delete, after a Create that failed once the
//	                          first of these had begun, or in `delete`
//
// The host's files, and the container's at their path of the host, are in sight of
// all of them. A startContainer hook is a program of the container's, and a wasm
// container runs none.
//
// See https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks.

// hookedFile of the bundle says that poststop hooks are to be run, to a `delete`
// after a crash of the shim. Who removes it runs them.
const hookedFile = "hooked"

// poststopTime bounds the poststop hooks of a container, all in all: a Delete that
// never answers is a pod that is Terminating for good.
const poststopTime = time.Minute

// stopHooksTime is what they may take of the 5 s that containerd gives a `delete`.
const stopHooksTime = 3 * time.Second

// maxHookOutput is how much of a hook's output an error repeats: the end of it.
const maxHookOutput = 4 << 10

func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	if len(h.StartContainer) > 0 {
		return fmt.Errorf("startContainer hook %s: a Linux program of the container, and a wasm container runs none", h.StartContainer[0].Path)
	}
	for _, kind := range [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer, h.Poststart, h.Poststop} { //nolint:staticcheck // prestart is deprecated, and in use
		for _, hook := range kind {
			switch {
			case !filepath.IsAbs(hook.Path):
				return fmt.Errorf("hook %s: not an absolute path", hook.Path)
			case hook.Timeout != nil && *hook.Timeout <= 0:
				return fmt.Errorf("hook %s: timeout %d: not positive", hook.Path, *hook.Timeout)
			}
		}
	}
	return nil
}

// hasCreateHooks tells whether createHooks has something to do.
func (b *bundle) hasCreateHooks() bool {
	h := b.spec.Hooks
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.Poststop) > 0 //nolint:staticcheck // prestart is deprecated, and in use
}

// createHooks runs the hooks of a Create that has the process c already, while
// [sandbox.Walls.Build] waits for them.
func (b *bundle) createHooks(ctx context.Context, id string, c *child, w *sandbox.Walls) error {
	h := b.spec.Hooks
	if len(h.Poststop) > 0 {
		if err := os.WriteFile(filepath.Join(b.path, hookedFile), nil, 0o600); err != nil {
			return err
		}
		b.hooked = true
	}
	state := b.state(id, specs.StateCreating, c.pid)
	if err := b.runHooks(ctx, telemetry.HookPrestart, h.Prestart, state, here); err != nil { //nolint:staticcheck // deprecated, and in use
		return err
	}
	if err := b.runHooks(ctx, telemetry.HookCreateRuntime, h.CreateRuntime, state, here); err != nil {
		return err
	}
	if len(h.CreateContainer) == 0 {
		return nil
	}
	var err error
	if state.Pid, err = innerPid(c.pid); err != nil {
		return err
	}
	return b.runHooks(ctx, telemetry.HookCreateContainer, h.CreateContainer, state, func(start func() error) error {
		return w.RunHook(c.pid, start)
	})
}

// poststart runs the hooks of a Start. One that fails ends the container.
func (c *container) poststart(ctx context.Context, pid int) error {
	if c.bundle.spec.Hooks == nil {
		return nil
	}
	err := c.bundle.runHooks(ctx, telemetry.HookPoststart, c.bundle.spec.Hooks.Poststart, c.bundle.state(c.id, specs.StateRunning, pid), here)
	if err != nil {
		_ = c.init.kill(unix.SIGKILL) // gone already, or will be
	}
	return err
}

// poststop runs the hooks of a container of which nothing else is left.
func (c *container) poststop(ctx context.Context) {
	b := c.bundle
	if !b.hooked {
		return
	}
	b.hooked = false
	// containerd may have removed the bundle of a Create that it has given up.
	if err := os.Remove(filepath.Join(b.path, hookedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.G(ctx).WithError(err).Error("poststop hooks")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), poststopTime)
	defer cancel()
	b.poststop(ctx, c.id)
}

// stopHooks runs the poststop hooks of a container whose shim was killed.
func stopHooks(ctx context.Context, path, id string) {
	if err := os.Remove(filepath.Join(path, hookedFile)); err != nil {
		return
	}
	b, err := readBundle(path)
	if err != nil || b.spec.Hooks == nil {
		return // it has been said
	}
	ctx, cancel := context.WithTimeout(ctx, stopHooksTime)
	defer cancel()
	b.poststop(ctx, id)
}

// poststop runs all the hooks for a container that is gone. One that fails changes
// nothing.
func (b *bundle) poststop(ctx context.Context, id string) {
	state := b.state(id, specs.StateStopped, 0)
	for _, h := range b.spec.Hooks.Poststop {
		if err := b.runHook(ctx, telemetry.HookPoststop, h, state, here); err != nil {
			log.G(ctx).WithError(err).Warn("poststop hook")
		}
	}
}

// state is what a hook is told.
func (b *bundle) state(id string, status specs.ContainerState, pid int) specs.State {
	s := specs.State{Version: b.spec.Version, ID: id, Status: status, Pid: pid, Bundle: b.path, Annotations: b.spec.Annotations}
	if s.Version == "" {
		s.Version = specs.Version
	}
	return s
}

// here starts a hook in the namespaces of the shim.
func here(start func() error) error { return start() }

// A hookError is a hook that could not be run, or failed.
type hookError struct {
	path string
	err  error
}

func (e *hookError) Error() string { return fmt.Sprintf("hook %s: %v", e.path, e.err) }
func (e *hookError) Unwrap() error { return e.err }

// innerPid is the pid of a process in its own pid namespace.
func innerPid(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, pids, _ := strings.Cut(string(data), "\nNSpid:")
	pids, _, _ = strings.Cut(pids, "\n")
	fields := strings.Fields(pids)
	if len(fields) == 0 {
		return 0, fmt.Errorf("process %d: no NSpid", pid)
	}
	return strconv.Atoi(fields[len(fields)-1])
}

// runHooks runs hooks one after the other, up to the first that fails. Stage is what
// telemetry calls those of their kind.
func (b *bundle) runHooks(ctx context.Context, stage string, hooks []specs.Hook, state specs.State, in func(start func() error) error) error {
	for _, h := range hooks {
		if err := b.runHook(ctx, stage, h, state, in); err != nil {
			return fmt.Errorf("%s %w", strings.TrimPrefix(stage, "hook."), err)
		}
	}
	return nil
}

// runHook runs a hook to its end: on a thread that `in` has run what starts it. Its
// environment is what the specification says and nothing else.
func (b *bundle) runHook(ctx context.Context, stage string, h specs.Hook, state specs.State, in func(start func() error) error) (err error) {
	ctx, span := telemetry.Start(ctx, stage)
	span.SetAttributes(telemetry.ProcessExecutablePath.String(telemetry.Text(h.Path)))
	defer func() {
		if err != nil {
			err = &hookError{h.Path, err}
		}
		telemetry.End(span, err)
	}()
	stdin, err := memfd("state", state)
	if err != nil {
		return err
	}
	defer stdin.Close()
	if _, err := stdin.Seek(0, io.SeekStart); err != nil {
		return err
	}
	// A file, and no pipe: what a hook leaves running may keep it.
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	output := os.NewFile(uintptr(fd), "output")
	defer output.Close()
	cmd := &exec.Cmd{
		Path: h.Path, Args: h.Args, Env: append([]string{}, h.Env...), Dir: b.path,
		Stdin: stdin, Stdout: output, Stderr: output,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if _, err := os.Stat(b.path); err != nil {
		cmd.Dir = "/" // containerd has given up this Create
	}
	if len(cmd.Args) == 0 {
		cmd.Args = []string{h.Path}
	}
	if h.Timeout != nil {
		limit := time.Duration(*h.Timeout) * time.Second
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("killed after its timeout of %v", limit))
		defer cancel()
	}
	status, err := runToEnd(ctx, cmd, in)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	if said := lastOutput(output); err != nil && said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// runToEnd starts cmd and waits for it. When ctx is done first, its process group
// is killed.
func runToEnd(ctx context.Context, cmd *exec.Cmd, in func(start func() error) error) (status int, err error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	exits := reaper.Default.Subscribe()
	defer reaper.Default.Unsubscribe(exits)
	if err := in(cmd.Start); err != nil {
		return 0, err
	}
	done := ctx.Done()
	for {
		select {
		case e := <-exits:
			if e.Pid != cmd.Process.Pid {
				continue
			}
			_ = cmd.Wait() // has nothing to say: the reaper was first; frees what cmd holds
			if done == nil {
				return 0, context.Cause(ctx)
			}
			return e.Status, nil
		case <-done:
			done = nil
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // it has ended already, or will
		}
	}
}

// lastOutput is the end of what a hook has written.
func lastOutput(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(0, info.Size()-maxHookOutput)
	data, err := io.ReadAll(io.NewSectionReader(f, from, maxHookOutput))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}
