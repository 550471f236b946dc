package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := mount.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0700", "size=" + size}}
	if err := m.Mount(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no room on the file system of dir, until the file it returns is removed.
func fill(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "more"), []byte("x"), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("not full: %v", err)
	}
	os.Remove(filepath.Join(dir, "more"))
	return path
}

// files are the paths below a directory.
func files(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// A Create that fails at any stage says what and why, leaves nothing behind, and
// can be made again once the reason is gone.
func TestContract09AFailedCreateLeavesNothing(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	before := traces(t, n)
	rec := record(t, n)
	other := p.member(t, "spin.wasm").mustRun(t)
	withOther := traces(t, n)
	check := func(t *testing.T, m *member, err error, want ...string) {
		t.Helper()
		wantError(t, err, nil, want...)
		for _, s := range m.remains(t, withOther) {
			t.Errorf("left behind: %s", s)
		}
		if _, err := m.state(""); !errdefs.IsNotFound(err) {
			t.Errorf("state: %v", err)
		}
		if events := names(rec.of(m.id, 0)); len(events) != 0 {
			t.Errorf("events %v", events)
		}
	}
	t.Run("no room for the compiled module", func(t *testing.T) {
		id := newID(t)
		dir := bundle(t, id, "", "")
		cache := filepath.Join(filepath.Dir(dir), "root", "io.containerd.wazero.v1")
		tmpfs(t, cache, "256k")
		p := &rawPod{raw: start(t, n, id, dir), ctx: n.Context(t.Context())}
		resp, err := p.Connect(p.ctx, &taskapi.ConnectRequest{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		p.pid = int(resp.ShimPid)
		m := p.member(t, "probe.wasm", args("/app.wasm", "exit", "3"))
		check(t, m, m.create(), "/app.wasm", "no space left on device")
		left := slices.DeleteFunc(files(t, cache), func(path string) bool {
			return path == filepath.Join(cache, "bin") // there was no room for the program either
		})
		if len(left) != 2 {
			t.Errorf("left in the cache: %v", left)
		}
		if err := unix.Mount("tmpfs", cache, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
			t.Fatal(err)
		}
		if status, err := m.run(); err != nil || status != 3 {
			t.Errorf("with room: %d, %v", status, err)
		}
		p.close(t)
	})
	t.Run("no room in the bundle", func(t *testing.T) {
		dir := t.TempDir()
		tmpfs(t, dir, "2m")
		m := p.member(t, "hello.wasm")
		if err := os.CopyFS(filepath.Join(dir, "b"), os.DirFS(m.bundle)); err != nil {
			t.Fatal(err)
		}
		m.bundle = filepath.Join(dir, "b")
		filler := fill(t, dir)
		check(t, m, m.create(), "no space left on device")
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if err := m.create(); err != nil {
			t.Fatalf("with room: %v", err)
		}
		// Full when the exit is to be recorded: it is reported all the same.
		fill(t, dir)
		if err := m.start(""); err != nil {
			t.Fatal(err)
		}
		if status, err := m.wait(""); err != nil || status != 0 {
			t.Errorf("%d, %v", status, err)
		}
		if err := m.delete(""); err != nil {
			t.Error(err)
		}
		for _, s := range checkOrder(rec.whole(t, m.id), m.id) {
			t.Error(s)
		}
	})
	t.Run("a cgroup that cannot be made", func(t *testing.T) {
		m := p.member(t, "hello.wasm", oci.WithCgroup("/"+node.Namespace+"/a\nb"))
		check(t, m, m.create(), "cgroup", "invalid argument")
	})
	t.Run("a limit that cannot be had", func(t *testing.T) {
		m := p.member(t, "hello.wasm", oci.WithCPUs("4000-4001"))
		check(t, m, m.create(), "cgroup", "cpuset")
	})
	t.Run("a cgroup that somebody else is in", func(t *testing.T) {
		m := p.member(t, "hello.wasm", oci.WithCgroup("/"+node.Namespace+"/"+other.id))
		err := m.create()
		wantError(t, err, nil, "in use by process")
		if s, err := other.state(""); err != nil || s.Status != tasktypes.Status_RUNNING || !alive(int(s.Pid)) {
			t.Errorf("the other container: %v, %v", s, err)
		}
		check(t, m, err)
	})
	t.Run("a root file system that is mounted half way", func(t *testing.T) {
		m := p.member(t, "hello.wasm")
		_, err := p.Create(p.ctx, &taskapi.CreateTaskRequest{ID: m.id, Bundle: m.bundle, Rootfs: []*types.Mount{
			{Type: "tmpfs", Source: "tmpfs"},
			{Type: "bind", Source: m.bundle, Options: []string{"bind"}},
			{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/no/such"}},
		}})
		check(t, m, errgrpc.ToNative(err), "mount root file system", "/no/such")
		if status, err := m.run(); err != nil || status != 0 {
			t.Errorf("with another: %d, %v", status, err)
		}
	})
	t.Run("streams, the second of which is not there", func(t *testing.T) {
		m := p.member(t, "hello.wasm")
		m.stdio = fifos(t)
		m.stdio.Stderr = "/no/such/fifo"
		check(t, m, m.create(), "stderr", "/no/such/fifo", "no such file")
	})
	t.Run("a Linux container with a runc that fails", func(t *testing.T) {
		m := p.linux(t, "exit 0")
		if err := os.Remove(filepath.Join(m.bundle, "rootfs", "busybox")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(m.bundle, "rootfs", "busybox"), []byte("#!/no/such\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		// runc finds that out at Start only; what it cannot do at Create is this.
		config, err := os.ReadFile(filepath.Join(m.bundle, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		broken := strings.Replace(string(config), `"type":"pid"`, `"type":"pid","path":"/no/such"`, 1)
		if err := os.WriteFile(filepath.Join(m.bundle, "config.json"), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		check(t, m, m.create(), "/no/such")
	})
	if !alive(other.pidOf(t, "")) {
		t.Error("the other container is dead")
	}
	other.end(t)
	for _, s := range other.remains(t, before) {
		t.Errorf("left behind: %s", s)
	}
	p.close(t)
	leaves(t, n, everything)
}

// settled is what comes of a call that its client has given up: it is undone, or
// it is done.
func (m *member) settled(t *testing.T) (s *taskapi.StateResponse) {
	t.Helper()
	// A Create that goes on still has the id.
	eventually(t, "the call has come to its end", func() bool {
		var err error
		s, err = m.state("")
		if err == nil {
			return true
		}
		if !errdefs.IsNotFound(err) {
			t.Errorf("state: %v", err)
		}
		err = m.create()
		if err == nil {
			s, err = m.state("")
		}
		return err == nil
	})
	return s
}

func TestContract09ACreateThatIsGivenUpAtAnyMoment(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	rec := record(t, n)
	other := p.member(t, "spin.wasm").mustRun(t)
	if _, err := p.member(t, "hello.wasm").run(); err != nil { // compiled
		t.Fatal(err)
	}
	before := traces(t, n)
	for name, give := range map[string]func(context.Context, time.Duration, *member) error{
		"cancelled": func(ctx context.Context, after time.Duration, m *member) error {
			ctx, cancel := context.WithTimeout(ctx, after)
			defer cancel()
			return m.createBy(ctx, p)
		},
		"the client goes away": func(ctx context.Context, after time.Duration, m *member) error {
			shim, conn := p.dial(t)
			time.AfterFunc(after, func() { conn.Close() })
			return m.createBy(ctx, shim)
		},
	} {
		t.Run(name, func(t *testing.T) {
			givenUp := 0
			began := time.Now()
			whole := p.member(t, "hello.wasm")
			if err := whole.create(); err != nil {
				t.Fatal(err)
			}
			long := time.Since(began) * 3 / 2
			whole.end(t)
			for range 30 {
				m := p.member(t, "hello.wasm")
				m.stdio = fifos(t)
				after := time.Duration(rand.Int64N(int64(long)))
				if err := give(p.ctx, after, m); err != nil {
					givenUp++
				}
				// Given up or not, the id is free for another, and that one is whole.
				m.settled(t)
				if err := m.start(""); err != nil {
					t.Errorf("after %v: start: %v", after, err)
				}
				if status, err := m.wait(""); err != nil || status != 0 {
					t.Errorf("after %v: %d, %v", after, status, err)
				}
				if err := m.delete(""); err != nil {
					t.Errorf("after %v: delete: %v", after, err)
				}
				for _, s := range m.remains(t, before) {
					t.Errorf("after %v: left behind: %s", after, s)
				}
				if got, want := names(rec.whole(t, m.id)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
					t.Errorf("after %v: events %v, want %v", after, got, want)
				}
			}
			if givenUp == 0 || givenUp == 30 {
				t.Errorf("%d of 30 were given up: want both kinds", givenUp)
			}
		})
	}
	other.end(t)
	p.close(t)
	leaves(t, n, everything)
}

// A client that goes away in the middle of a call leaves a container that others
// can go on with.
func TestAClientThatGoesAwayInTheMiddleOfACall(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	rec := record(t, n)
	m := p.member(t, "probe.wasm", args("/app.wasm", "idle")).mustRun(t)
	small := p.size(t)
	for i := range 40 {
		execID := fmt.Sprint("e", i)
		if err := m.exec(execID, "/app.wasm", "exit", "5"); err != nil {
			t.Fatal(err)
		}
		shim, conn := p.dial(t)
		time.AfterFunc(time.Duration(rand.Int64N(int64(40*time.Millisecond))), func() { conn.Close() })
		var calls sync.WaitGroup
		for range 3 { // of init, which does not end
			calls.Go(func() { _, _ = shim.Wait(p.ctx, &taskapi.WaitRequest{ID: m.id}) })
		}
		_, _ = shim.Start(p.ctx, &taskapi.StartRequest{ID: m.id, ExecID: execID})
		calls.Wait()
		// It has been started, or can be.
		eventually(t, "the exec has been started", func() bool {
			s, err := m.state(execID)
			if err != nil {
				t.Fatal(err)
			}
			if s.Status != tasktypes.Status_CREATED {
				return true
			}
			err = m.start(execID)
			if err != nil && !errdefs.IsFailedPrecondition(err) { // the first one goes on
				t.Errorf("start: %v", err)
			}
			return err == nil
		})
		if status, err := m.wait(execID); err != nil || status != 5 {
			t.Errorf("%d, %v", status, err)
		}
		if err := m.delete(execID); err != nil {
			t.Error(err)
		}
	}
	t.Run("Start", func(t *testing.T) {
		for range 20 {
			m := p.member(t, "hello.wasm")
			if err := m.create(); err != nil {
				t.Fatal(err)
			}
			shim, conn := p.dial(t)
			time.AfterFunc(time.Duration(rand.Int64N(int64(time.Millisecond))), func() { conn.Close() })
			_, _ = shim.Start(p.ctx, &taskapi.StartRequest{ID: m.id})
			if err := m.start(""); err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("start: %v", err)
			}
			if status, err := m.wait(""); err != nil || status != 0 {
				t.Errorf("%d, %v", status, err)
			}
			if err := m.delete(""); err != nil {
				t.Error(err)
			}
		}
	})
	var big size
	if !soon(func() bool {
		big = p.size(t)
		return big.descriptors <= small.descriptors && big.goroutines <= small.goroutines
	}) {
		t.Errorf("the shim was %+v, is %+v", small, big)
	}
	m.end(t)
	for _, s := range checkOrder(rec.whole(t, m.id), m.id) {
		t.Error(s)
	}
	p.close(t)
	leaves(t, n, everything)
}

// containerd's own service for Linux containers trusts its requests: an exec
// without a specification is a nil pointer to it.
func TestAPanicOfAHandlerEndsNoContainer(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	linux, wasm := p.linux(t, "while :; do /busybox sleep 1000; done").mustRun(t), p.member(t, "spin.wasm").mustRun(t)
	_, err := p.Exec(p.ctx, &taskapi.ExecProcessRequest{ID: linux.id, ExecID: "e"})
	wantError(t, err, nil, "panicked")
	log, err := os.ReadFile(filepath.Join(p.bundle, "log"))
	if err != nil || !strings.Contains(string(log), "nil pointer") || !strings.Contains(string(log), "runc-v2") {
		t.Errorf("the log does not say where: %s, %v", log, err)
	}
	for _, m := range []*member{linux, wasm} {
		if s, err := m.state(""); err != nil || s.Status != tasktypes.Status_RUNNING || !alive(int(s.Pid)) {
			t.Errorf("%s: %v, %v", m.id, s, err)
		}
	}
	if status, err := linux.runExec("f", "/busybox", "sh", "-c", "exit 6"); err != nil || status != 6 {
		t.Errorf("an exec beside it: %d, %v", status, err)
	}
	if status, err := p.member(t, "hello.wasm").run(); err != nil || status != 0 {
		t.Errorf("another container: %d, %v", status, err)
	}
	linux.end(t)
	wasm.end(t)
	p.close(t)
	leaves(t, n, everything)
}

func TestContract13CallsForAnUnknownContainerOrExec(t *testing.T) {
	n := useNode(t)
	p := newRawPod(t, n)
	wasm, linux := p.member(t, "spin.wasm").mustRun(t), p.linux(t, "while :; do /busybox sleep 1000; done").mustRun(t)
	shim := reflect.ValueOf(p.TTRPCTaskService)
	called := 0
	for i := range shim.NumMethod() {
		method := shim.Type().Method(i)
		request := reflect.New(method.Type.In(2).Elem())
		call := func() error {
			out := shim.Method(i).Call([]reflect.Value{reflect.ValueOf(p.ctx), request})
			err, _ := out[1].Interface().(error)
			return errgrpc.ToNative(err)
		}
		execID := request.Elem().FieldByName("ExecID")
		for _, m := range []*member{nil, wasm, linux} {
			id := "nobody"
			if m != nil {
				id = m.id
			}
			request.Elem().FieldByName("ID").SetString(id)
			switch method.Name {
			case "Create", "Connect", "Shutdown":
				continue
			}
			if execID.IsValid() {
				execID.SetString("nothing")
			}
			// Exec makes the id; of those without one the container is there.
			if m != nil && (!execID.IsValid() || method.Name == "Exec") {
				continue
			}
			called++
			if err := call(); !errdefs.IsNotFound(err) {
				t.Errorf("%s of %s: %v, want not found", method.Name, id, err)
			}
		}
	}
	if called < 14+2*7 {
		t.Errorf("only %d calls", called)
	}
	for _, m := range []*member{wasm, linux} {
		if !alive(m.pidOf(t, "")) {
			t.Errorf("%s is dead", m.id)
		}
		m.end(t)
	}
	p.close(t)
}

func TestOneOfManyCreatesOfAnIDSucceeds(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	rec := record(t, n)
	for _, m := range []*member{p.member(t, "hello.wasm"), p.linux(t, "exit 0")} {
		errs := make(chan error)
		for range 8 {
			go func() { errs <- m.create() }()
		}
		created := 0
		for range 8 {
			if err := <-errs; err == nil {
				created++
			} else if !errdefs.IsAlreadyExists(err) {
				t.Errorf("error %v, want already exists", err)
			}
		}
		if created != 1 {
			t.Errorf("%d of 8 creates succeeded", created)
		}
		if err := m.start(""); err != nil {
			t.Error(err)
		}
		if status, err := m.wait(""); err != nil || status != 0 {
			t.Errorf("%d, %v", status, err)
		}
		if err := m.delete(""); err != nil {
			t.Error(err)
		}
		if got, want := names(rec.whole(t, m.id)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	}
	p.close(t)
	leaves(t, n, everything)
}

func TestContract29WhatAnExecIsRefusedFor(t *testing.T) {
	n := useNode(t)
	everything := traces(t, n)
	p := newRawPod(t, n)
	rec := record(t, n)
	// The embedded service's errors have no class.
	pausedClass := map[string]error{"wasm": errdefs.ErrFailedPrecondition}
	for _, c := range []struct {
		name string
		m    *member
		args []string
	}{
		{"wasm", p.member(t, "probe.wasm", args("/app.wasm", "idle")), []string{"/app.wasm", "exit", "0"}},
		{"Linux", p.linux(t, "while :; do /busybox sleep 1000; done"), []string{"/busybox", "true"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := c.m.mustRun(t)
			if err := m.exec("twice", c.args...); err != nil {
				t.Fatal(err)
			}
			wantError(t, m.exec("twice", c.args...), errdefs.ErrAlreadyExists, "twice")
			// The first one is as it was, and runs.
			if err := m.start("twice"); err != nil {
				t.Error(err)
			}
			if status, err := m.wait("twice"); err != nil || status != 0 {
				t.Errorf("%d, %v", status, err)
			}
			// It has the id until it is deleted.
			wantError(t, m.exec("twice", c.args...), errdefs.ErrAlreadyExists, "twice")
			if err := m.delete("twice"); err != nil {
				t.Error(err)
			}
			// A path that is not there: at once for ours, at Start for runc's.
			bad := cio.Config{Stdout: filepath.Join(t.TempDir(), "none", "fifo")}
			err := m.execWith("io", bad, c.args...)
			if c.name == "Linux" && err == nil {
				err = m.start("io")
				if e := m.delete("io"); e != nil {
					t.Errorf("delete: %v", e)
				}
			}
			wantError(t, err, nil, bad.Stdout, "no such file")
			if _, err := m.state("io"); !errdefs.IsNotFound(err) {
				t.Errorf("state: %v", err)
			}
			if err := m.exec("before", c.args...); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Pause(p.ctx, &taskapi.PauseRequest{ID: m.id}); err != nil {
				t.Fatal(err)
			}
			wantError(t, m.exec("paused", c.args...), pausedClass[c.name], "paused")
			if c.name != "Linux" { // runc's Start waits for the Resume
				wantError(t, m.start("before"), errdefs.ErrFailedPrecondition, "paused")
			}
			if _, err := p.Resume(p.ctx, &taskapi.ResumeRequest{ID: m.id}); err != nil {
				t.Fatal(err)
			}
			if err := m.start("before"); err != nil {
				t.Errorf("start once resumed: %v", err)
			}
			if status, err := m.wait("before"); err != nil || status != 0 {
				t.Errorf("once resumed: %d, %v", status, err)
			}
			if err := m.kill("", 9); err != nil {
				t.Fatal(err)
			}
			if _, err := m.wait(""); err != nil {
				t.Fatal(err)
			}
			err = m.exec("late", c.args...)
			if c.name == "Linux" && err == nil {
				err = m.start("late") // runc's says it then
			}
			if c.name == "Linux" {
				wantError(t, err, nil, "stopped")
			} else {
				wantError(t, err, errdefs.ErrFailedPrecondition, "has exited")
			}
			if err := m.delete(""); err != nil {
				t.Error(err)
			}
			if !slices.ContainsFunc(rec.whole(t, m.id), func(e any) bool { _, ok := e.(*eventstypes.TaskExecStarted); return ok }) {
				t.Error("no exec-started event")
			}
		})
	}
	p.close(t)
	leaves(t, n, everything)
}
