package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// A rawPod is a raw shim with many containers.
type rawPod struct {
	*raw
	ctx context.Context
	pid int
}

// newRawPod starts a shim. Its end is that of its last container: see close.
func newRawPod(t *testing.T, n *node.Node) *rawPod {
	t.Helper()
	id := newID(t)
	p := &rawPod{raw: start(t, n, id, bundle(t, id, "", "")), ctx: n.Context(t.Context())}
	resp, err := p.Connect(p.ctx, &taskapi.ConnectRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	p.pid = int(resp.ShimPid)
	t.Cleanup(func() {
		data, err := os.ReadFile(filepath.Join(p.bundle, "log"))
		if err == nil && strings.Contains(string(data), "DATA RACE") {
			t.Errorf("the shim has a data race:\n%s", data)
		}
		if i := strings.Index(string(data), "panic: "); i > 0 && t.Failed() {
			t.Logf("the shim has panicked:\n%.8000s", data[max(0, i-200):])
		}
	})
	return p
}

// close ends the shim, which must have no container.
func (p *rawPod) close(t *testing.T) {
	t.Helper()
	_, _ = p.Shutdown(p.ctx, &taskapi.ShutdownRequest{ID: p.id}) // it may be gone before its answer is
	eventually(t, "the shim ends", func() bool {
		_, err := os.Stat(strings.TrimPrefix(p.address, "unix://"))
		return os.IsNotExist(err) && !alive(p.pid)
	})
}

// dial is another connection to the shim.
func (p *rawPod) dial(t *testing.T) (taskapi.TTRPCTaskService, *ttrpc.Client) {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(p.address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	return taskapi.NewTTRPCTaskClient(client), client
}

// A member is a container of a pod.
type member struct {
	pod        *rawPod
	id, bundle string
	stdio      cio.Config
	runc       bool // it is a Linux container
}

// member makes the bundle of a container, in which the guest is called /app.wasm
// or, when it is no module, /app.
func (p *rawPod) member(t *testing.T, guestName string, opts ...oci.SpecOpts) *member {
	t.Helper()
	id := newID(t)
	spec, err := oci.GenerateSpec(p.ctx, nil, &containers.Container{ID: id}, append([]oci.SpecOpts{oci.WithRootFSPath("rootfs"), args("/app.wasm")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	m := &member{pod: p, id: id}
	if strings.HasSuffix(guestName, ".wasm") {
		m.bundle = bundle(t, id, string(config), guestName)
		return m
	}
	m.bundle = bundle(t, id, string(config), "")
	if err := os.WriteFile(filepath.Join(m.bundle, "rootfs", "app"), guest(t, guestName), 0o755); err != nil {
		t.Fatal(err)
	}
	return m
}

// linux makes the bundle of a Linux container that runs a shell script.
func (p *rawPod) linux(t *testing.T, script string, opts ...oci.SpecOpts) *member {
	t.Helper()
	m := p.member(t, "busybox", append(opts, args("/busybox", "sh", "-c", script))...)
	m.runc = true
	if err := os.Rename(filepath.Join(m.bundle, "rootfs", "app"), filepath.Join(m.bundle, "rootfs", "busybox")); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *member) create() error { return m.createBy(m.pod.ctx, m.pod) }

func (m *member) createBy(ctx context.Context, s taskapi.TTRPCTaskService) error {
	_, err := s.Create(ctx, &taskapi.CreateTaskRequest{ID: m.id, Bundle: m.bundle, Stdin: m.stdio.Stdin, Stdout: m.stdio.Stdout, Stderr: m.stdio.Stderr})
	return errgrpc.ToNative(err)
}

func (m *member) start(execID string) error {
	_, err := m.pod.Start(m.pod.ctx, &taskapi.StartRequest{ID: m.id, ExecID: execID})
	return errgrpc.ToNative(err)
}

func (m *member) kill(execID string, sig uint32) error {
	_, err := m.pod.Kill(m.pod.ctx, &taskapi.KillRequest{ID: m.id, ExecID: execID, Signal: sig})
	return errgrpc.ToNative(err)
}

func (m *member) wait(execID string) (uint32, error) {
	resp, err := m.pod.Wait(m.pod.ctx, &taskapi.WaitRequest{ID: m.id, ExecID: execID})
	return resp.GetExitStatus(), errgrpc.ToNative(err)
}

func (m *member) delete(execID string) error {
	_, err := m.pod.Delete(m.pod.ctx, &taskapi.DeleteRequest{ID: m.id, ExecID: execID})
	return errgrpc.ToNative(err)
}

func (m *member) state(execID string) (*taskapi.StateResponse, error) {
	resp, err := m.pod.State(m.pod.ctx, &taskapi.StateRequest{ID: m.id, ExecID: execID})
	return resp, errgrpc.ToNative(err)
}

func (m *member) exec(execID string, args ...string) error {
	return m.execWith(execID, cio.Config{}, args...)
}

func (m *member) execWith(execID string, stdio cio.Config, args ...string) error {
	spec, err := json.Marshal(map[string]any{"args": args, "cwd": "/"})
	if err != nil {
		return err
	}
	_, err = m.pod.Exec(m.pod.ctx, &taskapi.ExecProcessRequest{
		ID: m.id, ExecID: execID, Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec},
		Stdin: stdio.Stdin, Stdout: stdio.Stdout, Stderr: stdio.Stderr,
	})
	return errgrpc.ToNative(err)
}

// pidOf is the pid of a process of the container.
func (m *member) pidOf(t *testing.T, execID string) int {
	t.Helper()
	s, err := m.state(execID)
	if err != nil {
		t.Fatal(err)
	}
	return int(s.Pid)
}

// runExec sees an exec through its whole life.
func (m *member) runExec(execID string, args ...string) (status uint32, err error) {
	if err := m.exec(execID, args...); err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	if err := m.start(execID); err != nil {
		return 0, errors.Join(fmt.Errorf("start of exec: %w", err), m.delete(execID))
	}
	if status, err = m.wait(execID); err != nil {
		return 0, fmt.Errorf("wait for exec: %w", err)
	}
	return status, m.delete(execID)
}

// run sees the container to its end.
func (m *member) run() (status uint32, err error) {
	if err := m.create(); err != nil {
		return 0, fmt.Errorf("create: %w", err)
	}
	if err := m.start(""); err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	if status, err = m.wait(""); err != nil {
		return 0, fmt.Errorf("wait: %w", err)
	}
	return status, m.delete("")
}

// mustRun has the container running.
func (m *member) mustRun(t *testing.T) *member {
	t.Helper()
	if err := m.create(); err != nil {
		t.Fatalf("create: %v", err)
	}
	if err := m.start(""); err != nil {
		t.Fatalf("start: %v", err)
	}
	return m
}

// end kills the container, whatever it is doing, and deletes it.
func (m *member) end(t *testing.T) {
	t.Helper()
	if err := m.kill("", 9); err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("kill: %v", err)
	}
	if _, err := m.wait(""); err != nil {
		t.Errorf("wait: %v", err)
	}
	if err := m.delete(""); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// remains is what is left of a container but for its bundle: what the shim has
// made is gone the moment Delete returns.
func (m *member) remains(t *testing.T, before []string) (found []string) {
	t.Helper()
	for _, s := range traces(t, m.pod.node) {
		if slices.Contains(before, s) || strings.Contains(s, fmt.Sprintf("process %d ", m.pod.pid)) {
			continue
		}
		found = append(found, s)
	}
	// Mounts below the bundle, which is not the node's.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], m.bundle+"/") {
			found = append(found, "mount "+f[4])
		}
	}
	return found
}

// checkOrder says what is wrong with the events of a container that has been
// deleted.
func checkOrder(events []any, id string) (wrong []string) {
	at := map[string][]int{}
	for i, e := range events {
		key := names(events[i : i+1])[0]
		switch e := e.(type) {
		case *eventstypes.TaskExit:
			key += " " + e.ID
		case *eventstypes.TaskExecAdded:
			key += " " + e.ExecID
		case *eventstypes.TaskExecStarted:
			key += " " + e.ExecID
		case *eventstypes.TaskCreate, *eventstypes.TaskStart, *eventstypes.TaskDelete:
			key += " " + id
		default:
			continue // may come any time, and often
		}
		at[key] = append(at[key], i)
	}
	// Before says that one event came once, and before another if that came at all.
	before := func(first, second string) {
		if len(at[second]) == 0 {
			return
		}
		if len(at[first]) == 0 || at[first][0] > at[second][0] {
			wrong = append(wrong, second+" without "+first+" before it")
		}
	}
	for key, when := range at {
		kind, name, _ := strings.Cut(key, " ")
		// The id of an exec may be used again once that is deleted.
		if len(when) != 1 {
			wrong = append(wrong, fmt.Sprintf("%s: %d times", key, len(when)))
		}
		if kind == "exec-started" && len(at["exit "+name]) == 0 {
			wrong = append(wrong, key+" without its exit")
		}
		if kind == "exit" && name != id {
			before("exec-added "+name, "exec-started "+name)
			before("exec-started "+name, key)
			before(key, "exit "+id)
		}
	}
	before("create "+id, "start "+id)
	if len(at["start "+id]) > 0 {
		before("start "+id, "exit "+id)
	}
	before("create "+id, "exit "+id)
	before("exit "+id, "delete "+id)
	if len(at["delete "+id]) != 1 {
		wrong = append(wrong, "no delete")
	}
	slices.Sort(wrong)
	return wrong
}

// whole waits for the events of a container up to its delete.
func (r *recorder) whole(t *testing.T, id string) (events []any) {
	t.Helper()
	if !soon(func() bool { events = r.of(id, 0); return slices.Contains(names(events), "delete") }) {
		t.Errorf("%s: no delete event: %v", id, names(events))
	}
	return events
}

// soon is eventually without the failure.
func soon(ok func() bool) bool {
	for range 250 {
		if ok() {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}
