package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"
)

// refused tells whether an error is one of those that a call may end with because
// of what others do to the container at the same time. Those of containerd's own
// service for Linux containers have no class, only a text.
func (m *member) refused(err error) bool {
	if m.runc {
		return !errors.Is(err, ttrpc.ErrClosed) && !strings.Contains(err.Error(), "panicked")
	}
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsAlreadyExists(err) ||
		strings.Contains(err.Error(), "unable to freeze") // the kernel, while processes come and go
}

// hammer makes calls of all kinds about a container, of which some succeed, until
// ctx is done.
func (m *member) hammer(ctx context.Context, t *testing.T, worker int, exec []string, made *atomic.Int64) {
	p := m.pod
	for i := 0; ctx.Err() == nil; i++ {
		execID, err := fmt.Sprintf("e-%d-%d", worker, i), error(nil)
		what := rand.IntN(14)
		switch what {
		case 0:
			_, err = p.State(p.ctx, &taskapi.StateRequest{ID: m.id})
		case 1:
			_, err = p.Pids(p.ctx, &taskapi.PidsRequest{ID: m.id})
		case 2:
			_, err = p.Connect(p.ctx, &taskapi.ConnectRequest{ID: m.id})
		case 3:
			_, err = p.CloseIO(p.ctx, &taskapi.CloseIORequest{ID: m.id, Stdin: true})
		case 4:
			_, err = p.Kill(p.ctx, &taskapi.KillRequest{ID: m.id, Signal: uint32(syscall.SIGWINCH)})
		case 5:
			_, err = p.Start(p.ctx, &taskapi.StartRequest{ID: m.id})
		case 6: // refused while it runs
			_, err = p.Delete(p.ctx, &taskapi.DeleteRequest{ID: m.id, ExecID: "nobody"})
		case 7:
			cancelled, cancel := context.WithTimeout(p.ctx, 1)
			_, _ = p.Wait(cancelled, &taskapi.WaitRequest{ID: m.id})
			cancel()
		case 8:
			_, err = p.Stats(p.ctx, &taskapi.StatsRequest{ID: m.id})
		case 9:
			_, err = p.Update(p.ctx, &taskapi.UpdateTaskRequest{ID: m.id, Resources: &anypb.Any{
				TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: []byte(`{"cpu":{"shares":512}}`),
			}})
		case 10: // what is paused is resumed, or killed
			if _, err = p.Pause(p.ctx, &taskapi.PauseRequest{ID: m.id}); err == nil {
				_, err = p.Resume(p.ctx, &taskapi.ResumeRequest{ID: m.id})
			}
		default:
			// An exec's life, each call of which others may make impossible.
			if err = m.exec(execID, exec...); err != nil {
				break
			}
			var others sync.WaitGroup
			for _, call := range []func() error{
				func() error { return m.start(execID) },
				func() error { return m.start(execID) },
				func() error { return m.kill(execID, uint32(syscall.SIGKILL)) },
				func() error { _, err := m.state(execID); return err },
				func() error {
					_, err := p.CloseIO(p.ctx, &taskapi.CloseIORequest{ID: m.id, ExecID: execID, Stdin: true})
					return errgrpc.ToNative(err)
				},
				func() error { return m.delete(execID) },
			} {
				others.Go(func() {
					if err := call(); err != nil && !m.refused(err) {
						t.Errorf("%s %s: %v", m.id, execID, err)
					}
				})
			}
			others.Wait()
			// Whatever came first: it can be brought to its end.
			if _, e := m.state(execID); e == nil {
				if e := m.start(execID); e == nil || errdefs.IsFailedPrecondition(e) {
					if s, e := m.state(execID); e == nil && s.Pid != 0 {
						if _, e := m.wait(execID); e != nil && !m.refused(e) {
							t.Errorf("%s %s: wait: %v", m.id, execID, e)
						}
					}
				}
				err = m.delete(execID)
			}
		}
		if err != nil && !m.refused(err) && !m.refused(errgrpc.ToNative(err)) {
			t.Errorf("%s: call %d: %v", m.id, what, err)
		}
		made.Add(1)
	}
}

// Everything at once, on containers that come and go: each keeps the order of its
// events, and the shim what it promises.
func TestContract01And02EventsKeepTheirOrderUnderAHammer(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	rec := record(t, n)
	if _, err := p.member(t, "hello.wasm").run(); err != nil { // compiled
		t.Fatal(err)
	}
	before := traces(t, n)
	var made atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var done []*member // guarded by mu
	for i := range 4 {
		wg.Go(func() {
			for round := range 5 {
				m := p.member(t, "hello.wasm", args("/app.wasm"))
				exec := []string{"/app.wasm"}
				if kind := (i + round) % 4; kind == 3 {
					m, exec = p.linux(t, "while :; do /busybox sleep 1000; done"), []string{"/busybox", "true"}
				} else {
					if kind > 0 {
						m = p.member(t, "spin.wasm")
					}
					m.stdio = readFifos(t)
				}
				mu.Lock()
				done = append(done, m)
				mu.Unlock()
				ctx, stop := context.WithCancel(p.ctx)
				var workers sync.WaitGroup
				for w := range 4 {
					workers.Go(func() { m.hammer(ctx, t, w, exec, &made) })
				}
				if err := m.create(); err != nil {
					t.Errorf("%s: create: %v", m.id, err)
				} else {
					was := made.Load()
					if err := m.start(""); err != nil && !m.refused(err) {
						t.Errorf("%s: start: %v", m.id, err)
					}
					eventually(t, "calls have been made", func() bool { return made.Load() > was+20 })
					var killers sync.WaitGroup
					for _, sig := range []uint32{15, 9, 2} {
						killers.Go(func() {
							if err := m.kill("", sig); err != nil && !errdefs.IsNotFound(err) {
								t.Errorf("%s: kill: %v", m.id, err)
							}
						})
					}
					killers.Go(func() { _, _ = p.Kill(p.ctx, &taskapi.KillRequest{ID: m.id, Signal: 9, All: true}) })
					killers.Wait()
					first, err := m.wait("")
					second, _ := m.wait("")
					if err != nil || first != second {
						t.Errorf("%s: wait: %d and %d, %v", m.id, first, second, err)
					}
					errs := make(chan error)
					for range 3 {
						go func() { errs <- m.delete("") }()
					}
					deleted := 0
					for range 3 {
						if err := <-errs; err == nil {
							deleted++
						} else if !errdefs.IsNotFound(err) {
							t.Errorf("%s: delete: %v", m.id, err)
						}
					}
					if deleted != 1 {
						t.Errorf("%s: %d of 3 deletes succeeded", m.id, deleted)
					}
				}
				stop()
				workers.Wait()
			}
		})
	}
	wg.Wait()
	t.Logf("%d calls", made.Load())
	for _, m := range done {
		events := rec.whole(t, m.id)
		for _, s := range checkOrder(events, m.id) {
			t.Errorf("%s: %s\n%v", m.id, s, names(events))
		}
		for _, s := range m.remains(t, before) {
			t.Errorf("left behind: %s", s)
		}
	}
	p.close(t)
	leaves(t, n, everything)
}

// The exit of a container comes after those of its execs, also when it dies while
// they are about to be started.
func TestContract01And02And29TheFirstProcessDiesWhileExecsStart(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	rec := record(t, n)
	for i := range 30 {
		m := p.member(t, "spin.wasm").mustRun(t)
		var wg sync.WaitGroup
		for e := range 4 {
			wg.Go(func() {
				execID := fmt.Sprint("e", e)
				err := m.exec(execID, "/app.wasm")
				if err == nil {
					if err = m.start(execID); err == nil {
						_, err = m.wait(execID)
					}
				}
				if err != nil && !m.refused(err) {
					t.Errorf("exec: %v", err)
				}
			})
		}
		killer := m.pidOf(t, "")
		for spun := 0; spun < i*200_000; spun++ { // a little later each time
			_ = spun
		}
		if err := syscall.Kill(killer, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if status, err := m.wait(""); err != nil || status != 137 {
			t.Errorf("%d, %v", status, err)
		}
		wg.Wait()
		if err := m.delete(""); err != nil {
			t.Errorf("delete: %v", err)
		}
		events := rec.whole(t, m.id)
		for _, s := range checkOrder(events, m.id) {
			t.Errorf("%s: %s\n%v", m.id, s, names(events))
		}
	}
	p.close(t)
	leaves(t, n, everything)
}

func TestContract03And04AnExecsExitIsTheSameEverywhere(t *testing.T) {
	n := useNode(t)
	p := newRawPod(t, n)
	rec := record(t, n)
	m := p.member(t, "probe.wasm", args("/app.wasm", "idle")).mustRun(t)
	if err := m.exec("e", "/app.wasm", "exit", "9"); err != nil {
		t.Fatal(err)
	}
	started, err := p.Start(p.ctx, &taskapi.StartRequest{ID: m.id, ExecID: "e"})
	if err != nil {
		t.Fatal(err)
	}
	wait, err := p.Wait(p.ctx, &taskapi.WaitRequest{ID: m.id, ExecID: "e"})
	if err != nil {
		t.Fatal(err)
	}
	state, err := m.state("e")
	if err != nil {
		t.Fatal(err)
	}
	del, err := p.Delete(p.ctx, &taskapi.DeleteRequest{ID: m.id, ExecID: "e"})
	if err != nil {
		t.Fatal(err)
	}
	if state.ID != "e" || state.ExecID != "e" {
		t.Errorf("state of %q, %q", state.ID, state.ExecID)
	}
	m.end(t)
	var exit *eventstypes.TaskExit
	for _, e := range rec.whole(t, m.id) {
		switch e := e.(type) {
		case *eventstypes.TaskExit:
			if e.ID == "e" {
				exit = e
			} else if e.ID != m.id {
				t.Errorf("exit of %q", e.ID)
			}
		case *eventstypes.TaskExecStarted:
			if e.Pid != started.Pid || e.ExecID != "e" {
				t.Errorf("started %v, want pid %d", e, started.Pid)
			}
		}
	}
	if exit == nil || exit.ContainerID != m.id {
		t.Fatalf("exit event %v", exit)
	}
	at := exit.ExitedAt.AsTime()
	for what, got := range map[string]struct {
		pid, status uint32
		same        bool
	}{
		"event":  {exit.Pid, exit.ExitStatus, true},
		"wait":   {started.Pid, wait.ExitStatus, wait.ExitedAt.AsTime().Equal(at)},
		"state":  {state.Pid, state.ExitStatus, state.ExitedAt.AsTime().Equal(at)},
		"delete": {del.Pid, del.ExitStatus, del.ExitedAt.AsTime().Equal(at)},
	} {
		if got.pid != started.Pid || got.status != 9 || !got.same {
			t.Errorf("%s: %+v, want pid %d, 9, at %v", what, got, started.Pid, at)
		}
	}
	p.close(t)
}

func TestContract12AStartOfAnExecInFlightRejectsASecondOne(t *testing.T) {
	n := useNode(t)
	p := newRawPod(t, n)
	m := p.member(t, "spin.wasm").mustRun(t)
	if err := m.exec("e", "/app.wasm"); err != nil {
		t.Fatal(err)
	}
	oneOfEight(t, func() error { return m.start("e") })
	wantError(t, m.start("e"), errdefs.ErrFailedPrecondition)
	// An exec whose start has failed may be started again, and fails again.
	if err := m.exec("none", "/none.wasm"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantError(t, m.start("none"), errdefs.ErrInvalidArgument, "/none.wasm")
	}
	m.end(t)
	wantError(t, m.start(""), errdefs.ErrNotFound)
	p.close(t)
}

func TestContract15KillOfExecs(t *testing.T) {
	n := useNode(t)
	p := newRawPod(t, n)
	m, other := p.member(t, "spin.wasm").mustRun(t), p.member(t, "spin.wasm").mustRun(t)
	linux := p.linux(t, "while :; do /busybox sleep 1000; done").mustRun(t)
	pids := map[*member][]int{}
	for _, c := range []*member{m, other, linux} {
		program := []string{"/app.wasm"}
		if c == linux {
			program = []string{"/busybox", "sleep", "1000"}
		}
		pids[c] = []int{c.pidOf(t, "")}
		for _, e := range []string{"e", "f"} {
			if err := c.exec(e, program...); err != nil {
				t.Fatal(err)
			}
			if c != linux {
				wantError(t, c.kill(e, 9), errdefs.ErrFailedPrecondition, e)
			}
			if err := c.start(e); err != nil {
				t.Fatal(err)
			}
			pids[c] = append(pids[c], c.pidOf(t, e))
		}
	}
	// Of one exec.
	if err := m.kill("e", uint32(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if status, err := m.wait("e"); err != nil || status != 143 {
		t.Errorf("%d, %v", status, err)
	}
	wantError(t, m.kill("e", 9), errdefs.ErrNotFound)
	if !alive(pids[m][0]) || !alive(pids[m][2]) {
		t.Error("more than the exec is dead")
	}
	// Of all: an exec that has exited, one that runs, one that was never started.
	if err := m.exec("never", "/app.wasm"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Kill(p.ctx, &taskapi.KillRequest{ID: m.id, Signal: uint32(syscall.SIGTERM), All: true}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []string{"", "f"} {
		if status, err := m.wait(e); err != nil || status != 143 {
			t.Errorf("%q: %d, %v", e, status, err)
		}
	}
	for i, pid := range pids[m] {
		if alive(pid) {
			t.Errorf("process %d of the container is alive", i)
		}
	}
	for _, c := range []*member{other, linux} {
		for i, pid := range pids[c] {
			if !alive(pid) {
				t.Errorf("process %d of %s is dead", i, c.id)
			}
		}
		c.end(t)
	}
	if err := m.delete(""); err != nil {
		t.Error(err)
	}
	p.close(t)
}

func TestContract17DeleteOfExecs(t *testing.T) {
	n := useNode(t)
	p := newRawPod(t, n)
	m := p.member(t, "spin.wasm").mustRun(t)
	if err := m.exec("e", "/app.wasm"); err != nil {
		t.Fatal(err)
	}
	resp, err := p.Delete(p.ctx, &taskapi.DeleteRequest{ID: m.id, ExecID: "e"})
	if err != nil || resp.ExitStatus != 0 {
		t.Errorf("of a created exec: %v, %v, want 0", resp, err)
	}
	wantError(t, m.delete("e"), errdefs.ErrNotFound, "e")
	if err := m.exec("e", "/app.wasm"); err != nil {
		t.Fatal(err)
	}
	if err := m.start("e"); err != nil {
		t.Fatal(err)
	}
	pid := m.pidOf(t, "e")
	wantError(t, m.delete("e"), errdefs.ErrFailedPrecondition, "e")
	if s, err := m.state("e"); err != nil || int(s.Pid) != pid || !alive(pid) {
		t.Errorf("after a refused Delete: %v, %v", s, err)
	}
	if err := m.kill("e", 9); err != nil {
		t.Fatal(err)
	}
	if _, err := m.wait("e"); err != nil {
		t.Fatal(err)
	}
	if err := m.delete("e"); err != nil {
		t.Error(err)
	}
	wantError(t, m.delete("e"), errdefs.ErrNotFound, "e")
	wantError(t, m.delete(""), errdefs.ErrFailedPrecondition)
	m.end(t)
	wantError(t, m.delete(""), errdefs.ErrNotFound)
	p.close(t)
}

// What an exec request says is somebody else's.
func TestBadExecRequests(t *testing.T) {
	n := useNode(t)
	p := newRawPod(t, n)
	m := p.member(t, "spin.wasm").mustRun(t)
	for name, c := range map[string]struct{ spec, want string }{
		"nothing":             {"", "unexpected end"},
		"null":                {"null", "process is missing"},
		"not JSON":            {"{", "unexpected end"},
		"not an object":       {"[]", "cannot unmarshal"},
		"no arguments":        {`{"cwd":"/"}`, "args is empty"},
		"a relative cwd":      {`{"args":["/app.wasm"],"cwd":"x"}`, `"x"`},
		"a user of no number": {`{"args":["/app.wasm"],"cwd":"/","user":{"uid":"root"}}`, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Exec(p.ctx, &taskapi.ExecProcessRequest{ID: m.id, ExecID: "e", Spec: &anypb.Any{Value: []byte(c.spec)}})
			wantError(t, errgrpc.ToNative(err), errdefs.ErrInvalidArgument, "e", c.want)
		})
	}
	_, err := p.Exec(p.ctx, &taskapi.ExecProcessRequest{ID: m.id, ExecID: "e"})
	wantError(t, errgrpc.ToNative(err), errdefs.ErrInvalidArgument)
	if _, err := m.state("e"); !errdefs.IsNotFound(err) {
		t.Errorf("state: %v", err)
	}
	for _, id := range []string{"", m.id} {
		wantError(t, m.exec(id, "/app.wasm"), errdefs.ErrInvalidArgument, fmt.Sprintf("%q", id))
	}
	m.end(t)
	p.close(t)
}
