package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	apitypes "github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	ocifeatures "github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// hostConfigEnv names the configuration of the host.
const hostConfigEnv = "CONTAINERD_SHIM_WAZERO_CONFIG"

func marshalAny(t *testing.T, v any) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// startCommand is a `start` as containerd 2.3 and later run it, with sockets of
// the node's own, or as older ones do, with options.
func startCommand(t *testing.T, n *node.Node, id, dir string, old bool, opts []byte) *exec.Cmd {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "log"), nil, 0o600); err != nil { // read by nobody
		t.Fatal(err)
	}
	cmd := exec.Command(shimBinary(), "-namespace", node.Namespace, "-address", n.Address(), "-publish-binary", "/x", "-id", id, "start")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+n.Address()+".ttrpc")
	cmd.Stdin = bytes.NewReader(opts)
	if !old {
		sockets := filepath.Join(n.Dir, "r")
		cmd.Stdin = bytes.NewReader(encode(t, &bootapi.BootstrapParams{
			InstanceID: id, Namespace: node.Namespace, SocketDir: &sockets,
			ContainerdTtrpcAddress: n.Address() + ".ttrpc", ContainerdGrpcAddress: n.Address(),
		}))
	}
	return cmd
}

// oldStart runs a `start` of containerd 1.7 to 2.2, and returns the address.
func oldStart(t *testing.T, n *node.Node, id, dir string, opts []byte) string {
	t.Helper()
	out, err := startCommand(t, n, id, dir, true, opts).CombinedOutput()
	if err != nil {
		t.Fatalf("start: %v: %s", err, out)
	}
	var answer struct {
		Version           int
		Address, Protocol string
	}
	if err := json.Unmarshal(out, &answer); err != nil || answer.Version != 2 || answer.Protocol != "ttrpc" || !strings.HasPrefix(answer.Address, "unix://") {
		t.Fatalf("start answers %q, %v", out, err)
	}
	return answer.Address
}

// shimsOf are the pids of the shim processes that were started for container id.
func shimsOf(t *testing.T, id string) (pids []int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		cmdline, err := os.ReadFile(p)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err == nil && alive(pid) && bytes.Contains(cmdline, []byte("\x00-id\x00"+id+"\x00")) && !bytes.HasSuffix(cmdline, []byte("\x00start\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// shutdown ends a raw shim, and waits until its socket and process are gone.
func shutdown(t *testing.T, r *raw) {
	t.Helper()
	if _, err := r.Shutdown(r.node.Context(t.Context()), &taskapi.ShutdownRequest{ID: r.id}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Error(err)
	}
	eventually(t, "the shim ends, and its socket goes", func() bool {
		_, err := os.Lstat(strings.TrimPrefix(r.address, "unix://"))
		return errors.Is(err, fs.ErrNotExist) && len(shimsOf(t, r.id)) == 0
	})
}

func TestContract08OptionsOfAKnownTypeAreRead(t *testing.T) {
	n := useNode(t)
	id := newID(t)
	r := start(t, n, id, bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm"))
	ctx := n.Context(t.Context())
	file := filepath.Join(t.TempDir(), "o.toml")
	if err := os.WriteFile(file, []byte("Root = '/r'\nNoPivotRoot = 'maybe'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		options *anypb.Any
		says    []string // nil: accepted
	}{
		{"none", nil, nil},
		{"empty", &anypb.Any{}, nil},
		{"runc's", marshalAny(t, &runcoptions.Options{IoUid: 1}), nil},
		{"TOML", marshalAny(t, &runtimeoptions.Options{TypeUrl: "x", ConfigBody: []byte("SystemdCgroup = false\n[unknown]\nkey = 1")}), nil},
		{"no TOML", marshalAny(t, &runtimeoptions.Options{}), nil},
		{"malformed TOML", marshalAny(t, &runtimeoptions.Options{ConfigBody: []byte("Root = '/r'\nSystemdCgroup == true")}), []string{"line 2"}},
		{"a malformed TOML file", marshalAny(t, &runtimeoptions.Options{ConfigPath: file}), []string{file, "line 2"}},
		{"a TOML file that is not there", marshalAny(t, &runtimeoptions.Options{ConfigPath: "/no/such/file"}), []string{"/no/such/file"}},
		{"of a type for something else", marshalAny(t, &taskapi.StateRequest{ID: "x"}), []string{"StateRequest"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle, Options: tt.options})
			if tt.says != nil {
				wantError(t, errgrpc.ToNative(err), errdefs.ErrInvalidArgument, tt.says...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
				t.Fatal(err)
			}
		})
	}
	shutdown(t, r)
}

func TestContract08TheConfigurationOfTheHost(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opts := options()
	opts.ShimEnv = []string{hostConfigEnv + "=" + file}
	n := newNode(t, opts)
	img := app(t, n, "hello.wasm")
	before := traces(t, n)
	t.Run("malformed, fails Create, which says where", func(t *testing.T) {
		write("# a comment\nSystemdCgroup = true\nRoot = [\n")
		b := container(t, n, img, args("/app.wasm"))
		wantError(t, b.create(), errdefs.ErrFailedPrecondition, file, "line 3")
	})
	t.Run("with an unknown key, warns in the log", func(t *testing.T) {
		write("NoSuchKey = 1\n")
		run(t, n, img, args("/app.wasm"))
		eventually(t, "the warning", func() bool { return strings.Contains(n.Log(), file+", line 1: NoSuchKey") })
	})
	t.Run("empty", func(t *testing.T) {
		write("")
		if _, status := run(t, n, img, args("/app.wasm")); status != 0 {
			t.Errorf("exit status %d", status)
		}
	})
	t.Run("named and not there, fails Create", func(t *testing.T) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		b := container(t, n, img, args("/app.wasm"))
		wantError(t, b.create(), errdefs.ErrFailedPrecondition, file)
	})
	leaves(t, n, before)
}

// newCgroup makes a cgroup for a shim, in every hierarchy.
func newCgroup(t *testing.T, path string) {
	t.Helper()
	if cgroups.Mode() == cgroups.Unified {
		c, err := cgroup2.NewManager("/sys/fs/cgroup", path, &cgroup2.Resources{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { eventually(t, "the cgroup goes", func() bool { return c.Delete() == nil }) })
		return
	}
	c, err := cgroup1.New(cgroup1.StaticPath(path), &specs.LinuxResources{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eventually(t, "the cgroup goes", func() bool { return c.Delete() == nil }) })
}

// cgroupOf is the cgroup of a process; on version 1 that of the memory controller.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) == 3 && (f[1] == "memory" || cgroups.Mode() == cgroups.Unified) {
			return f[2]
		}
	}
	t.Fatalf("process %d has no cgroup: %s", pid, data)
	return ""
}

func TestContract25TheShimIsInItsCgroupFromTheStart(t *testing.T) {
	need(t)
	cgroup := "/wazero-test-shim-" + strconv.Itoa(os.Getpid())
	newCgroup(t, cgroup)
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "ShimCgroup = %q\n", cgroup), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, version string
		options       any
		env           []string
		want          string
	}{
		{"by runc's options", "", &runcoptions.Options{ShimCgroup: cgroup}, nil, cgroup},
		{"by TOML", "", &runtimeoptions.Options{ConfigPath: file}, nil, cgroup},
		{"by the host's configuration", "", nil, []string{hostConfigEnv + "=" + file}, cgroup},
		{"under containerd 2.2", "2.2", &runcoptions.Options{ShimCgroup: cgroup}, nil, cgroup},
		{"not at all", "", nil, nil, cgroupOf(t, os.Getpid())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := options()
			opts.Version, opts.ShimEnv = tt.version, tt.env
			n := newNode(t, opts)
			b := containerWith(t, n, app(t, n, "spin.wasm"), tt.options, args("/app.wasm"))
			b.mustCreate(t)
			if got := cgroupOf(t, shimOf(t, n, b.ID())); got != tt.want {
				t.Errorf("the shim is in %s, want %s", got, tt.want)
			}
			if got := cgroupOf(t, int(b.task.Pid())); got == cgroup {
				t.Errorf("the container is in the cgroup of the shim")
			}
			b.remove()
		})
	}
	t.Run("one that is not there", func(t *testing.T) {
		n := useNode(t)
		before := traces(t, n)
		b := containerWith(t, n, app(t, n, "spin.wasm"), &runcoptions.Options{ShimCgroup: "/no-such-cgroup"}, args("/app.wasm"))
		wantError(t, b.create(), nil, "/no-such-cgroup")
		b.remove()
		leaves(t, n, before)
	})
}

func TestContract25TheKernelKillsTheShimBeforeContainerd(t *testing.T) {
	score := func(pid int) int {
		t.Helper()
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil {
			t.Fatal(err)
		}
		v, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, version := range []string{"1.7", ""} {
		t.Run("containerd "+version, func(t *testing.T) {
			opts := options()
			opts.Version = version
			n := newNode(t, opts)
			const own = 37
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", n.Pid()), []byte(strconv.Itoa(own)), 0); err != nil {
				t.Fatal(err)
			}
			b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
			b.mustCreate(t)
			if got := score(shimOf(t, n, b.ID())); got != own+1 {
				t.Errorf("got %d, want %d", got, own+1)
			}
			b.remove()
		})
	}
}

func TestContract35AnOldStartIsAnsweredInItsOwnForm(t *testing.T) {
	n := useNode(t)
	for _, tt := range []struct {
		name  string
		input []byte
	}{
		{"without options", nil},
		{"with runc's", encode(t, marshalAny(t, &runcoptions.Options{BinaryName: "runc"}))},
		{"with TOML", encode(t, marshalAny(t, &runtimeoptions.Options{ConfigBody: []byte("Root = '/r'")}))},
		{"with malformed ones, which Create is to refuse", encode(t, marshalAny(t, &runtimeoptions.Options{ConfigBody: []byte("Root == '/r'")}))},
		{"with garbage", []byte("garbage")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := newID(t)
			dir := bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm")
			address := oldStart(t, n, id, dir, tt.input)
			t.Cleanup(func() { _ = os.Remove(strings.TrimPrefix(address, "unix://")) })
			if data, err := os.ReadFile(filepath.Join(dir, "address")); string(data) != address {
				t.Errorf("the file address: %q, %v, want %s", data, err, address)
			}
			if again := oldStart(t, n, id, dir, tt.input); again != address {
				t.Errorf("a second start answers %s, want %s", again, address)
			}
			r := dial(t, n, id, dir, address)
			ctx := n.Context(t.Context())
			if _, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: dir}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
				t.Fatal(err)
			}
			shutdown(t, r)
		})
	}
}

func TestContract35StartsAtTheSameTimeConvergeOnOneShim(t *testing.T) {
	n := useNode(t)
	for _, old := range []bool{false, true} {
		t.Run(map[bool]string{false: "new form", true: "old form"}[old], func(t *testing.T) {
			id := newID(t)
			dir := bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm")
			var answers [8][]byte
			var all sync.WaitGroup
			for i := range answers {
				cmd := startCommand(t, n, id, dir, old, nil)
				all.Go(func() {
					out, err := cmd.CombinedOutput()
					if err != nil {
						t.Errorf("start: %v: %s", err, out)
					}
					answers[i] = out
				})
			}
			all.Wait()
			for _, a := range answers {
				if !bytes.Equal(a, answers[0]) {
					t.Errorf("answers %q and %q", answers[0], a)
				}
			}
			if got := shimsOf(t, id); len(got) != 1 {
				t.Errorf("%d shims, want 1", len(got))
			}
			shutdown(t, dial(t, n, id, dir, addressOf(t, old, answers[0])))
		})
	}
}

func TestContract35AStartThatIsKilledIsNotInTheWayOfTheNext(t *testing.T) {
	n := useNode(t)
	id := newID(t)
	dir := bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm")
	// Everywhere from the first instruction to the answer.
	for after := time.Duration(0); after < 16*time.Millisecond; after += 500 * time.Microsecond {
		cmd := startCommand(t, n, id, dir, false, nil)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	r := start(t, n, id, dir)
	if got := shimsOf(t, id); len(got) != 1 {
		t.Errorf("%d shims, want 1", len(got))
	}
	if _, err := r.Create(n.Context(t.Context()), &taskapi.CreateTaskRequest{ID: id, Bundle: dir}); err != nil {
		t.Error(err)
	}
	if _, err := r.Delete(n.Context(t.Context()), &taskapi.DeleteRequest{ID: id}); err != nil {
		t.Error(err)
	}
	shutdown(t, r)
}

// What containerd has given up is no shim that nobody knows of.
func TestContract35AStartThatIsKilledLeavesNothing(t *testing.T) {
	n := useNode(t)
	id := newID(t)
	dir := bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm")
	sockets, err := os.ReadDir(filepath.Join(n.Dir, "r"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	cmd := startCommand(t, n, id, dir, false, nil)
	params := cmd.Stdin
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd.Stdin = r
	err = cmd.Start()
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the shim waits for its parameters", func() bool { return len(shimsOf(t, id)) == 1 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if _, err := io.Copy(w, params); err != nil {
		t.Fatal(err)
	}
	w.Close()
	eventually(t, "the shim ends", func() bool { return len(shimsOf(t, id)) == 0 })
	if got, _ := os.ReadDir(filepath.Join(n.Dir, "r")); len(got) != len(sockets) {
		t.Errorf("%d sockets, want %d", len(got), len(sockets))
	}
}

func addressOf(t *testing.T, old bool, answer []byte) string {
	t.Helper()
	var result bootapi.BootstrapResult
	err := proto.Unmarshal(answer, &result)
	if old {
		err = json.Unmarshal(answer, &result)
	}
	if err != nil {
		t.Fatalf("start answers %q: %v", answer, err)
	}
	return result.Address
}

func TestContract19AShimOfAGroupEndsWithItsLastContainer(t *testing.T) {
	n := useNode(t)
	ctx := n.Context(t.Context())
	first := newID(t)
	pod := func(id string) string {
		t.Helper()
		var s specs.Spec
		if err := json.Unmarshal([]byte(minimal(t, id, "/app.wasm")), &s); err != nil {
			t.Fatal(err)
		}
		s.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": first}
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return bundle(t, id, string(data), "spin.wasm")
	}
	var raws []*raw
	var pids []int
	for i := range 3 {
		id := first
		if i > 0 {
			id = newID(t)
		}
		r := start(t, n, id, pod(id))
		resp, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle})
		if err != nil {
			t.Fatal(err)
		}
		if r.address != append(raws, r)[0].address {
			t.Errorf("start answers %s, want that of the first one, %s", r.address, raws[0].address)
		}
		raws, pids = append(raws, r), append(pids, int(resp.Pid))
	}
	// What containerd leaves in the bundle, for `delete`.
	for _, r := range raws {
		data, err := json.Marshal(&bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: r.address})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.bundle, "bootstrap.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range raws {
		t.Run([]string{"the first of three", "the second", "the last"}[i], func(t *testing.T) {
			if _, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: r.id}); err != nil {
				t.Fatal(err)
			}
			deleteBinary(t, n, r.id, r.bundle)
			if i == 2 {
				shutdown(t, &raw{r.TTRPCTaskService, first, r.bundle, r.address, n})
				return
			}
			if _, err := r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: r.id}); err != nil {
				t.Fatal(err)
			}
			for j := i + 1; j < 3; j++ {
				if _, err := raws[j].State(ctx, &taskapi.StateRequest{ID: raws[j].id}); err != nil || !alive(pids[j]) {
					t.Errorf("%s: %v, alive: %t", raws[j].id, err, alive(pids[j]))
				}
			}
		})
	}
}

func TestContract33DeleteBesideALiveShim(t *testing.T) {
	n := useNode(t)
	t.Run("of a container of a shim before this one", func(t *testing.T) {
		// The group's shim was killed, and one container started again before
		// `delete` was run for the other.
		left := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		left.mustCreate(t)
		left.mustStart(t)
		pid := int(left.task.Pid())
		id := newID(t)
		r := start(t, n, id, bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm"))
		// A bundle of the same cgroup and process, whose shim knows nothing of it.
		dir := bundle(t, left.ID(), minimal(t, left.ID(), "/app.wasm"), "")
		for name, data := range map[string]string{"address": r.address, "init.pid": strconv.Itoa(pid)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := deleteBinary(t, n, left.ID(), dir); got.ExitStatus != 137 || int(got.Pid) != pid {
			t.Errorf("delete answers %v", got)
		}
		if alive(pid) {
			t.Error("the process lives")
		}
		if _, err := r.Connect(n.Context(t.Context()), &taskapi.ConnectRequest{ID: id}); err != nil {
			t.Errorf("the live shim: %v", err)
		}
		shutdown(t, r)
	})
	t.Run("that hangs", func(t *testing.T) {
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		b.mustStart(t)
		hanging := shimOf(t, n, b.ID())
		if err := syscall.Kill(hanging, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// It answers until the thread that is given the signal is out of the kernel,
		// where it may be taking a mount off.
		eventually(t, "the shim has stopped", func() bool { return stopped(hanging) })
		got := deleteBinary(t, n, b.ID(), n.Bundle(b.ID()))
		if got.ExitStatus != 137 || alive(int(b.task.Pid())) {
			t.Errorf("delete answers %v, the process lives: %t", got, alive(int(b.task.Pid())))
		}
		if err := syscall.Kill(hanging, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	})
}

// stopped tells whether every thread of a process has stopped.
func stopped(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return err == nil && len(stats) > 0 && !slices.ContainsFunc(stats, func(path string) bool {
		data, err := os.ReadFile(path)
		return err == nil && !bytes.Contains(data, []byte(") T "))
	})
}

// A Linux container as the embedded runc service leaves it when its shim dies.
func TestContract33DeleteOfALinuxContainer(t *testing.T) {
	n := useNode(t)
	runc := n.Tool("runc")
	root := filepath.Join(n.Dir, "runc")
	for _, tt := range []struct {
		name  string
		spoil func(dir string)
	}{
		{"as it was left", func(string) {}},
		{"twice", func(dir string) { deleteBinary(t, n, filepath.Base(dir), dir) }},
		{"without its config.json", func(dir string) { os.Remove(filepath.Join(dir, "config.json")) }},
		{"without its options", func(dir string) { os.Remove(filepath.Join(dir, "options.json")) }},
		{"without runc", func(dir string) {
			os.WriteFile(filepath.Join(dir, "runtime"), []byte("/no/such/runc"), 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := newID(t)
			var s specs.Spec
			if err := json.Unmarshal([]byte(minimal(t, id, "/hello")), &s); err != nil {
				t.Fatal(err)
			}
			s.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}}
			data, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			dir := bundle(t, id, string(data), "")
			rootfs := filepath.Join(dir, "rootfs")
			if err := os.MkdirAll(filepath.Join(rootfs, "proc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(rootfs, "hello"), guest(t, "hello-static"), 0o755); err != nil {
				t.Fatal(err)
			}
			// The root file system of a container is a mount.
			if err := syscall.Mount(rootfs, rootfs, "", syscall.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(rootfs, syscall.MNT_DETACH) }) // gone, mostly
			state := filepath.Join(root, node.Namespace)
			create := exec.Command(runc, "--root", state, "create", "--bundle", dir, "--pid-file", filepath.Join(dir, "init.pid"), id)
			if err := create.Run(); err != nil { // its output would be the container's, and no pipe's end
				t.Fatalf("runc: %v", err)
			}
			t.Cleanup(func() { _ = exec.Command(runc, "--root", state, "delete", "--force", id).Run() })
			for name, data := range map[string]string{"runtime": runc, "options.json": fmt.Sprintf(`{"root":%q}`, root)} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			data, err = os.ReadFile(filepath.Join(dir, "init.pid"))
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(string(data))
			if err != nil || !alive(pid) {
				t.Fatalf("process %s: %v", data, err)
			}
			tt.spoil(dir)
			if got := deleteBinary(t, n, id, dir); got.ExitStatus != 137 || int(got.Pid) != pid {
				t.Errorf("delete answers %v, want 137 of %d", got, pid)
			}
			if alive(pid) {
				t.Error("the process lives")
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || strings.Contains(string(mounts), rootfs) {
				t.Errorf("the root file system is mounted, %v", err)
			}
			if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + node.Namespace + "/" + id); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestContract36Info(t *testing.T) {
	n := useNode(t)
	info := func(t *testing.T, in []byte) (*apitypes.RuntimeInfo, error) {
		t.Helper()
		cmd := exec.Command(shimBinary(), "-info")
		cmd.Stdin = bytes.NewReader(in)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, &stderr)
		}
		if stderr.Len() > 0 {
			t.Errorf("printed %q", &stderr)
		}
		i := &apitypes.RuntimeInfo{}
		return i, proto.Unmarshal(stdout.Bytes(), i)
	}
	known := marshalAny(t, &runcoptions.Options{BinaryName: "runc"})
	for _, tt := range []struct {
		name  string
		input []byte
		says  string // empty: an answer
	}{
		{"no options", nil, ""},
		{"runc's", encode(t, known), ""},
		{"TOML", encode(t, marshalAny(t, &runtimeoptions.Options{ConfigBody: []byte("SystemdCgroup = true")})), ""},
		{"TOML with an unknown key", encode(t, marshalAny(t, &runtimeoptions.Options{ConfigBody: []byte("NoSuch = true")})), ""},
		{"malformed TOML", encode(t, marshalAny(t, &runtimeoptions.Options{ConfigBody: []byte("SystemdCgroup == true")})), "line 1"},
		{"an unknown type", encode(t, &anypb.Any{TypeUrl: "made.up/Type", Value: []byte{1}}), "made.up/Type"},
		{"garbage", []byte("ÿÿgarbage"), "options"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i, err := info(t, tt.input)
			if tt.says != "" {
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want an error that says %q", err, tt.says)
				}
				return
			}
			if err != nil || i.Name != node.Runtime || i.Version.GetVersion() == "" || i.Features == nil {
				t.Errorf("got %v, %v", i, err)
			}
			if len(tt.input) > 0 && !bytes.Equal(encode(t, i.Options), tt.input) {
				t.Errorf("options %v, want those that were given", i.Options)
			}
		})
	}
	t.Run("the features, by way of containerd", func(t *testing.T) {
		resp, err := n.Client.IntrospectionService().PluginInfo(n.Context(t.Context()), "io.containerd.runtime.v2", "task",
			&apitypes.RuntimeRequest{RuntimePath: node.Runtime, Options: known})
		if err != nil {
			t.Fatal(err)
		}
		var i apitypes.RuntimeInfo
		if err := typeurl.UnmarshalTo(resp.Extra, &i); err != nil {
			t.Fatal(err)
		}
		v, err := typeurl.UnmarshalAny(i.Features)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := v.(*ocifeatures.Features)
		if !ok {
			t.Fatalf("got %T", v)
		}
		out, err := exec.Command(n.Tool("runc"), "features").Output()
		if err != nil {
			t.Fatal(err)
		}
		var runc ocifeatures.Features
		if err := json.Unmarshal(out, &runc); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			what      string
			got, runc []string
			has       []string
		}{
			{"mount options", got.MountOptions, runc.MountOptions, []string{"rro", "ro", "bind", "rbind", "nosuid", "rprivate", "relatime"}},
			{"namespaces", got.Linux.Namespaces, runc.Linux.Namespaces, []string{"cgroup", "ipc", "mount", "network", "pid", "uts"}},
			{"hooks", got.Hooks, runc.Hooks, nil},
		} {
			for _, o := range tt.got {
				if !slices.Contains(tt.runc, o) {
					t.Errorf("%s: a Linux container does not do %q", tt.what, o)
				}
			}
			for _, o := range tt.has {
				if !slices.Contains(tt.got, o) {
					t.Errorf("%s: %q is missing from %q", tt.what, o, tt.got)
				}
			}
		}
		if got.OCIVersionMax != specs.Version || got.OCIVersionMin != "1.0.0" {
			t.Errorf("OCI versions %q to %q", got.OCIVersionMin, got.OCIVersionMax)
		}
	})
	for _, flag := range []string{"-v", "--version"} {
		t.Run(flag, func(t *testing.T) {
			out, err := exec.Command(shimBinary(), flag).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), node.Runtime+"\n") || !strings.Contains(string(out), "Version:") {
				t.Errorf("%v: %q", err, out)
			}
		})
	}
}

func TestContract37TheLongestNames(t *testing.T) {
	n := useNode(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.wasm"), guest(t, "probe.wasm"), 0o644); err != nil {
		t.Fatal(err)
	}
	namespace, id := strings.Repeat("n", 76), strings.Repeat("i", 64)
	ctr := func(args ...string) *exec.Cmd {
		cmd := exec.Command(n.Tool("ctr"), append([]string{"-a", n.Address(), "-n", namespace}, args...)...)
		cmd.Env = append(os.Environ(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
		return cmd
	}
	before := traces(t, n)
	out, err := ctr("run", "--rm", "--runtime="+node.Runtime, "--rootfs", dir, id, "/app.wasm", "print", "long").CombinedOutput()
	if err != nil || string(out) != "long\n" {
		t.Errorf("%v: %q", err, out)
	}
	leaves(t, n, before)
	if out, err := ctr("namespaces", "remove", namespace).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestContract24SystemdsDriverByConfiguration(t *testing.T) {
	need(t)
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("SystemdCgroup = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		options any
		env     []string
	}{
		{"of the host", nil, []string{hostConfigEnv + "=" + file}},
		{"of the request, runc's", &runcoptions.Options{SystemdCgroup: true}, nil},
		{"of the request, TOML", &runtimeoptions.Options{ConfigPath: file}, nil},
		{"of the host, overridden", &runtimeoptions.Options{ConfigBody: []byte("SystemdCgroup = false")}, []string{hostConfigEnv + "=" + file}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := options()
			opts.ShimEnv = tt.env
			n := newNode(t, opts)
			b := containerWith(t, n, app(t, n, "spin.wasm"), tt.options, args("/app.wasm"), oci.WithCgroup("")) // the default one is no path of systemd's
			err := b.create()
			_, booted := os.Stat("/run/systemd/system") // sd_booted(3)
			switch {
			case strings.HasSuffix(tt.name, "overridden"):
				if err != nil || strings.HasSuffix(cgroupOf(t, int(b.task.Pid())), ".scope") {
					t.Errorf("got %v, want a cgroup without systemd", err)
				}
			case booted == nil:
				if err != nil || !strings.HasSuffix(cgroupOf(t, int(b.task.Pid())), ".scope") {
					t.Errorf("got %v, want a scope", err)
				}
			default: // asked for, and not to be had
				wantError(t, err, nil, "systemd")
			}
			b.remove()
		})
	}
}
