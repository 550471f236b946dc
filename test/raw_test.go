package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// A raw shim is one that no containerd started: the test makes the bundle, runs
// `start` and speaks ttrpc, so that it can do what containerd never would.
type raw struct {
	taskapi.TTRPCTaskService
	id, bundle, address string
	node                *node.Node
}

// bundle makes a bundle with the given config.json, none when it is empty, and a
// root file system with the guest.
func bundle(t *testing.T, id, config, guestName string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), id)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	// What containerd makes as well: the link tells where its root directory is.
	work := filepath.Join(filepath.Dir(dir), "root", "plugin", node.Namespace, id)
	if err := os.MkdirAll(work, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(work, filepath.Join(dir, "work")); err != nil {
		t.Fatal(err)
	}
	if guestName != "" {
		if err := os.WriteFile(filepath.Join(dir, "rootfs", "app.wasm"), guest(t, guestName), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if config != "" {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// minimal is the least config.json that runs.
func minimal(t *testing.T, id string, args ...string) string {
	t.Helper()
	data, err := json.Marshal(specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: args, Cwd: "/"},
		Root:    &specs.Root{Path: "rootfs"},
		Linux: &specs.Linux{
			CgroupsPath: "/" + node.Namespace + "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func shimBinary() string {
	dir := bin()
	if d := os.Getenv(shimEnv); d != "" {
		dir = d
	}
	return filepath.Join(dir, "containerd-shim-wazero-v1")
}

// start runs `start` in a bundle, as containerd 2.4 does.
func start(t *testing.T, n *node.Node, id, dir string) *raw {
	t.Helper()
	sockets := filepath.Join(n.Dir, "r")
	params, err := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: id, Namespace: node.Namespace, SocketDir: &sockets,
		ContainerdTtrpcAddress: n.Address() + ".ttrpc", ContainerdGrpcAddress: n.Address(),
	})
	if err != nil {
		t.Fatal(err)
	}
	// Somebody has to read the log, as containerd would.
	logfile := filepath.Join(dir, "log")
	if err := os.WriteFile(logfile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shimBinary(), "-namespace", node.Namespace, "-id", id, "-address", n.Address(), "start")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(params)
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+n.Address()+".ttrpc", "PATH="+bin()+":"+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0")
	// As containerd reads it: a line on either stream but the answer breaks it.
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("start: %v: %s", err, out)
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(out, &result); err != nil {
		t.Fatalf("start answers %q: %v", out, err)
	}
	return dial(t, n, id, dir, result.Address)
}

// dial is the shim that serves at an address.
func dial(t *testing.T, n *node.Node, id, dir, address string) *raw {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	return &raw{taskapi.NewTTRPCTaskClient(client), id, dir, address, n}
}

func rawCreate(t *testing.T, n *node.Node, id, config string) error {
	t.Helper()
	r := start(t, n, id, bundle(t, id, config, ""))
	ctx := n.Context(t.Context())
	_, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle})
	// The shim may be gone before its answer is.
	if _, e := r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id}); e != nil && !errors.Is(e, ttrpc.ErrClosed) {
		t.Error(e)
	}
	eventually(t, "the socket is removed", func() bool {
		_, err := os.Stat(strings.TrimPrefix(r.address, "unix://"))
		return os.IsNotExist(err)
	})
	return errgrpc.ToNative(err)
}
