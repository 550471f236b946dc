// Package test drives the built shim from outside: under a real containerd, by
// its Go client, by ctr and by the shim's own socket.
package test

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// rootEnv says that what the tests need must be there: under it, and in CI, they
// fail where they would otherwise be skipped.
const rootEnv = "TEST_ROOT"

// shimEnv names the directory with the shim to test, where it is not bin/.
const shimEnv = "TEST_SHIM"

var (
	sharedOnce sync.Once
	sharedErr  error
	shared     *node.Node
	spans      *collector.Collector // of the nodes that tests share

	collect = sync.OnceValue(func() (err error) {
		spans, err = collector.Start()
		return err
	})
)

// telemetryEnv has spans sent to where the tests look for them.
func telemetryEnv() []string {
	return sendTo(spans.Addr())
}

// sendTo has containerd and its shims send spans to an address, by gRPC and soon.
func sendTo(addr string) []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + addr, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=200"}
}

func TestMain(m *testing.M) {
	// A client that gives a call up logs the answer that comes all the same.
	if err := log.SetLevel("fatal"); err != nil {
		panic(err)
	}
	code := m.Run()
	for _, n := range []*node.Node{shared, pods} {
		if n == nil {
			continue
		}
		if strings.Contains(n.Log(), "DATA RACE") {
			fmt.Fprintln(os.Stderr, "the shim has a data race:\n", n.Log())
			code = 1
		}
		if err := n.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the node:", err)
			code = 1
		}
	}
	if spans != nil {
		spans.Close()
	}
	os.Exit(code)
}

func bin() string {
	dir, err := filepath.Abs("../bin")
	if err != nil {
		panic(err)
	}
	return dir
}

// need skips or fails a test that cannot be run here.
func need(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	} else if _, err := os.Stat(filepath.Join(bin(), "containerd")); err != nil {
		why = "needs what `make test` builds"
	}
	if why == "" {
		return
	}
	if os.Getenv(rootEnv) != "" || os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why + ": run `sudo make test`")
}

func options(env ...string) node.Options {
	shim := bin()
	if dir := os.Getenv(shimEnv); dir != "" {
		shim = dir
	}
	// A race detector would have every shim wait a second before it ends.
	return node.Options{Bin: bin(), Shim: shim, Env: append(env, "GORACE=atexit_sleep_ms=0")}
}

// heapKiB is how much a shim may grow that allocates so much: built with the race
// detector, it has a shadow of that beside.
func heapKiB(t *testing.T, kib int) int {
	t.Helper()
	info, err := buildinfo.ReadFile(filepath.Join(options().Shim, "containerd-shim-wazero-v1"))
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return 4 * kib
	}
	return kib
}

// useNode is the node that most tests share; containerd on it is traced.
func useNode(t *testing.T) *node.Node {
	t.Helper()
	need(t)
	sharedOnce.Do(func() {
		if sharedErr = collect(); sharedErr != nil {
			return
		}
		shared, sharedErr = node.Start(context.Background(), options(append(telemetryEnv(),
			// What containerd says of itself is not what the shim is to say.
			"OTEL_SERVICE_NAME=containerd")...))
	})
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

// newNode is a node of the test's own.
func newNode(t *testing.T, opts node.Options) *node.Node {
	t.Helper()
	need(t)
	n, err := node.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if strings.Contains(n.Log(), "DATA RACE") {
			t.Error("the shim has a data race:\n", n.Log())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// guest is a module or program that make has built.
func guest(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bin(), "guests", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// app is an image whose /app.wasm is the guest of the given name.
func app(t *testing.T, n *node.Node, name string) containerd.Image {
	t.Helper()
	return image(t, n, name, node.Regular("app.wasm", guest(t, name)))
}

func image(t *testing.T, n *node.Node, name string, files ...node.File) containerd.Image {
	t.Helper()
	img, err := n.Image(t.Context(), "example.com/"+strings.ToLower(name)+":latest", ocispec.ImageConfig{}, files...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

var (
	idMu sync.Mutex
	idN  int
)

// newID is an id that no other container has.
func newID(t *testing.T) string {
	idMu.Lock()
	defer idMu.Unlock()
	idN++
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, filepath.Base(t.Name()))
	for strings.Contains(name, "--") {
		name = strings.ReplaceAll(name, "--", "-")
	}
	return fmt.Sprintf("%s-%d", strings.Trim(fmt.Sprintf("%.40s", name), "-"), idN)
}

// A box is a container with its task.
type box struct {
	containerd.Container
	task           containerd.Task
	stdout, stderr *buffer
	stdin          *io.PipeWriter
	ctx            context.Context
	node           *node.Node
}

// buffer is a bytes.Buffer that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// container makes the metadata of a container.
func container(t *testing.T, n *node.Node, img containerd.Image, opts ...oci.SpecOpts) *box {
	t.Helper()
	return containerWith(t, n, img, nil, opts...)
}

// containerWith makes one with options for the runtime.
func containerWith(t *testing.T, n *node.Node, img containerd.Image, runtimeOptions any, opts ...oci.SpecOpts) *box {
	t.Helper()
	ctx := n.Context(t.Context())
	id := newID(t)
	c, err := n.Client.NewContainer(ctx, id, containerd.WithImage(img), containerd.WithNewSnapshot(id, img),
		containerd.WithRuntime(node.Runtime, runtimeOptions),
		containerd.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(img)}, opts...)...))
	if err != nil {
		t.Fatal(err)
	}
	b := &box{Container: c, stdout: &buffer{}, stderr: &buffer{}, ctx: ctx, node: n}
	t.Cleanup(b.remove)
	return b
}

// remove is what is left to do when a test is over, whatever state it left.
func (b *box) remove() {
	ctx, cancel := context.WithTimeout(b.node.Context(context.Background()), 20*time.Second)
	defer cancel()
	if b.node.Client == nil {
		return
	}
	if b.task != nil {
		_, _ = b.task.Delete(ctx, containerd.WithProcessKill)
		if streams := b.task.IO(); streams != nil {
			streams.Cancel()
			streams.Close()
		}
	}
	c, err := b.node.Client.LoadContainer(ctx, b.ID())
	if err != nil {
		return
	}
	if task, err := c.Task(ctx, nil); err == nil {
		_, _ = task.Delete(ctx, containerd.WithProcessKill)
	}
	// The shim of a task that was deleted behind containerd's back.
	_, _ = b.node.Client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: b.ID()})
	_ = c.Delete(ctx, containerd.WithSnapshotCleanup)
}

// create makes the task; withStdin gives it a standard input that the test writes.
func (b *box) create(withStdin ...bool) error {
	var stdin io.Reader
	if len(withStdin) > 0 {
		var r *io.PipeReader
		r, b.stdin = io.Pipe()
		stdin = r
	}
	task, err := b.NewTask(b.ctx, cio.NewCreator(cio.WithStreams(stdin, b.stdout, b.stderr), cio.WithFIFODir(filepath.Join(b.node.Dir, "fifo"))))
	b.task = task
	return err
}

func (b *box) mustCreate(t *testing.T, withStdin ...bool) {
	t.Helper()
	if err := b.create(withStdin...); err != nil {
		t.Fatalf("create: %v", err)
	}
}

func (b *box) mustStart(t *testing.T) {
	t.Helper()
	if err := b.task.Start(b.ctx); err != nil {
		t.Fatalf("start: %v", err)
	}
}

// exit waits for the exit.
func (b *box) exit(t *testing.T) uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	ch, err := b.task.Wait(ctx)
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	status := <-ch
	if err := status.Error(); err != nil {
		t.Fatalf("wait: %v", err)
	}
	return status.ExitCode()
}

func (b *box) delete(t *testing.T) *containerd.ExitStatus {
	t.Helper()
	status, err := b.task.Delete(b.ctx)
	if err != nil {
		t.Fatalf("delete: %v", err)
	}
	return status
}

// run sees a container through its whole life.
func run(t *testing.T, n *node.Node, img containerd.Image, opts ...oci.SpecOpts) (*box, uint32) {
	t.Helper()
	b := container(t, n, img, opts...)
	return b, b.live(t)
}

// live runs a container from its creation to its deletion, and returns the exit status.
func (b *box) live(t *testing.T) uint32 {
	t.Helper()
	b.mustCreate(t)
	b.mustStart(t)
	status := b.exit(t)
	b.delete(t)
	return status
}

func args(a ...string) oci.SpecOpts { return oci.WithProcessArgs(a...) }

// shimAddress is the socket of the shim of a container.
func shimAddress(t *testing.T, n *node.Node, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Bundle(id), "bootstrap.json"))
	if err != nil {
		t.Fatal(err)
	}
	var boot struct{ Address string }
	if err := json.Unmarshal(data, &boot); err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(boot.Address, "unix://")
}

// shimClient talks to the shim of a container directly.
func shimClient(t *testing.T, n *node.Node, id string) taskapi.TTRPCTaskService {
	t.Helper()
	conn, err := net.Dial("unix", shimAddress(t, n, id))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	return taskapi.NewTTRPCTaskClient(client)
}

// shimPID is the pid of the shim of a container.
func shimPID(t *testing.T, n *node.Node, id string) int {
	t.Helper()
	resp, err := shimClient(t, n, id).Connect(namespaces.WithNamespace(t.Context(), node.Namespace), &taskapi.ConnectRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return int(resp.ShimPid)
}

// A recorder keeps the task events of one node.
type recorder struct {
	mu     sync.Mutex
	events []any
}

func record(t *testing.T, n *node.Node) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(n.Context(context.Background()))
	r := &recorder{}
	ch, errs := n.Client.Subscribe(ctx, `topic~="/tasks/"`)
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for {
			select {
			case e := <-ch:
				r.add(e)
			case <-errs:
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond) // the subscription is not acknowledged
	return r
}

func (r *recorder) add(e *events.Envelope) {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, v)
}

// of are the events of a container, once there are n or a while has passed.
func (r *recorder) of(id string, n int) []any {
	var got []any
	for range 100 {
		r.mu.Lock()
		got = nil
		for _, e := range r.events {
			if c, ok := e.(interface{ GetContainerID() string }); ok && c.GetContainerID() == id {
				got = append(got, e)
			}
		}
		r.mu.Unlock()
		if len(got) >= n {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return got
}

// names are the kinds of events, in short.
func names(events []any) (out []string) {
	for _, e := range events {
		switch e.(type) {
		case *eventstypes.TaskCreate:
			out = append(out, "create")
		case *eventstypes.TaskStart:
			out = append(out, "start")
		case *eventstypes.TaskExit:
			out = append(out, "exit")
		case *eventstypes.TaskDelete:
			out = append(out, "delete")
		case *eventstypes.TaskExecAdded:
			out = append(out, "exec-added")
		case *eventstypes.TaskExecStarted:
			out = append(out, "exec-started")
		default:
			out = append(out, fmt.Sprintf("%T", e))
		}
	}
	return out
}

// traces are what a container could leave behind: mounts, cgroups, processes,
// sockets, FIFOs and bundles of the node.
func traces(t *testing.T, n *node.Node) []string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], n.Dir+"/") {
			found = append(found, "mount "+f[4])
		}
	}
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/" + node.Namespace + "/*", "/sys/fs/cgroup/" + node.Namespace + "/*",
		"/run/containerd/runc/" + node.Namespace + "/*",
		n.Dir + "/s/*", n.Dir + "/fifo/*", n.Dir + "/state/io.containerd.runtime.v2.task/*/*", n.Dir + "/state/io.containerd.runtime.v2.task/*/.*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			if info, err := os.Lstat(p); err == nil && (info.IsDir() || !strings.HasPrefix(p, "/sys/")) {
				found = append(found, p)
			}
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		// A zombie is its parent's to reap, and `delete` may still be answering.
		cmdline, err := os.ReadFile(filepath.Join(p, "cmdline"))
		program, _, _ := strings.Cut(string(cmdline), "\x00")
		if filepath.Base(program) != "containerd-shim-wazero-v1" {
			continue
		}
		if err != nil || len(cmdline) == 0 || bytes.HasSuffix(cmdline, []byte("\x00delete\x00")) || bytes.HasSuffix(cmdline, []byte("\x00-info\x00")) {
			continue
		}
		if data, err := os.ReadFile(filepath.Join(p, "status")); err == nil && bytes.Contains(data, []byte("\nState:\tZ")) {
			continue
		}
		if elsewhere(n, p) {
			continue
		}
		found = append(found, "process "+filepath.Base(p)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
	slices.Sort(found)
	return found
}

// elsewhere tells whether a process is that of another node on this machine: a
// shim works in its bundle, an instance process is the child of one.
func elsewhere(n *node.Node, proc string) bool {
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	for _, dir := range []string{proc, "/proc/" + f[1]} {
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		if strings.HasPrefix(cwd, filepath.Join(os.TempDir(), "wz")) {
			return !strings.HasPrefix(cwd, n.Dir+"/")
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if _, ns, ok := strings.Cut(string(cmdline), "\x00-namespace\x00"); ok {
			return !strings.HasPrefix(ns, node.Namespace+"\x00")
		}
	}
	return false
}

// leaves fails a test that leaves more than there was. The shim may take a moment
// to end after its answer to Shutdown, one that nobody knows of twice 5 s.
func leaves(t *testing.T, n *node.Node, before []string) {
	t.Helper()
	nothingMore(t, before, func() []string { return traces(t, n) })
}

func nothingMore(t *testing.T, before []string, now func() []string) {
	t.Helper()
	var more []string
	for range 250 {
		more = nil
		for _, s := range now() {
			if !slices.Contains(before, s) {
				more = append(more, s)
			}
		}
		if len(more) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind:\n  %s", strings.Join(more, "\n  "))
}

// eventually waits up to 10 s for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: not within 10 s", what)
}

// alive tells whether a process runs. It does no more once all its threads have begun to
// exit, as the kernel's flag in their stat says (PF_EXITING): the first of a pid namespace
// may be there for long after that, until the machine's init has reaped the others.
func alive(pid int) bool {
	const exiting = 0x4
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return slices.ContainsFunc(threads, func(path string) bool {
		data, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) < 7 {
			return false
		}
		flags, err := strconv.ParseUint(fields[6], 10, 32)
		return err == nil && flags&exiting == 0 && fields[0] != "Z" && fields[0] != "X"
	})
}

// procFile is what /proc says of a process.
func procFile(t *testing.T, pid uint32, name string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// statusField is a line of a process's status.
func statusField(t *testing.T, pid uint32, field string) string {
	t.Helper()
	for _, line := range strings.Split(procFile(t, pid, "status"), "\n") {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("process %d: no %s", pid, field)
	return ""
}

// mountsOf are the mount points of a process, with the kind of what is mounted.
func mountsOf(t *testing.T, pid uint32) (mounts []string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(procFile(t, pid, "mountinfo")), "\n") {
		f := strings.Fields(line)
		mounts = append(mounts, f[2]+" "+f[4]+" "+f[5])
	}
	slices.Sort(mounts)
	return mounts
}

func namespaceOf(t *testing.T, pid uint32, ns string) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// bind mounts a directory or file of the host.
func bind(source, destination string, options ...string) oci.SpecOpts {
	return oci.WithMounts([]specs.Mount{{Type: "bind", Source: source, Destination: destination, Options: append([]string{"rbind"}, options...)}})
}

func wantError(t *testing.T, err, class error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %v", class)
	}
	if class != nil && !errors.Is(err, class) {
		t.Errorf("error %q: want %v", err, class)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q: does not say %q", err, p)
		}
	}
}

// closeStdin says that the standard input has ended.
func (b *box) closeStdin(t *testing.T) {
	t.Helper()
	if err := b.task.CloseIO(b.ctx, containerd.WithStdinCloser); err != nil {
		t.Fatalf("close stdin: %v", err)
	}
}
