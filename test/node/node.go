// Package node is a private containerd in a temporary folder, for the tests, the
// demo and the benchmark: with its own root, state, sockets and namespace, and
// nothing of it left when it is closed.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// Runtime is the runtime under test.
const Runtime = "io.containerd.wazero.v1"

// Namespace is the containerd namespace everything is run in, but on a node with
// CRI. Cgroups and runc's state are called after it: it is this program's alone.
var Namespace = fmt.Sprintf("test-%d", os.Getpid())

// criNamespace is the one that CRI has everything in.
const criNamespace = "k8s.io"

// Options are how to start a node. The zero value is fine.
type Options struct {
	// Bin is a directory with containerd, ctr, the shims and runc; it comes before
	// PATH. Shim is one with the shim under test, which comes before that.
	Bin, Shim string
	// Version is that of another containerd than the pinned one: containerd-VERSION
	// in Bin.
	Version string
	// Env is added to containerd's environment, and so to the shims'.
	Env []string
	// ShimEnv is added by containerd to that of its shims only; 1.7 cannot.
	ShimEnv []string
	// Debug has containerd and its shims log everything.
	Debug bool
	// CRI turns on what the kubelet talks to. Everything is in its namespace
	// then, and it knows the images.
	CRI bool
	// CRIConfig is the configuration of CRI's plugins in place of the node's own,
	// which has the runtime under test: a template, of Dir and Bin.
	CRIConfig string
	// Head is more of the configuration's own keys, a template as well.
	Head string
	// ContentStore is the address of a content store, in place of containerd's own.
	ContentStore string
}

// A Node is a running containerd.
type Node struct {
	Dir    string // everything it has on disk, but for runc's state
	Client *containerd.Client
	opts   Options
	cmd    *exec.Cmd
}

var config = template.Must(template.New("").Parse(`version = {{if .Old}}2{{else}}3{{end}}
root = "{{.Dir}}/root"
state = "{{.Dir}}/state"
{{.Head}}
disabled_plugins = [
{{- if not .CRI}}
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri",
{{- end}}
  "io.containerd.internal.v1.opt",
{{- if .ContentStore}}
  "io.containerd.content.v1.content",
{{- end}}
]
{{- if .ContentStore}}
[proxy_plugins.store]
  type = "content"
  address = "{{.ContentStore}}"
{{- end}}
[grpc]
  address = "{{.Dir}}/c.sock"
[ttrpc]
  address = "{{.Dir}}/c.sock.ttrpc"
{{if not .Old}}[plugins."io.containerd.shim.v1.manager"]
  {{if .SocketDir}}socket_dir = "{{.SocketDir}}"{{end}}
  env = [{{range .ShimEnv}}{{printf "%q" .}},{{end}}]
{{end}}`))

// Start starts a node. It needs root.
func Start(ctx context.Context, opts Options) (_ *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a private containerd needs root: run this as root (sudo)")
	}
	// Short: socket paths have to fit.
	dir, err := os.MkdirTemp("", "wz")
	if err != nil {
		return nil, err
	}
	n := &Node{Dir: dir, opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	var buf, head bytes.Buffer
	if text, err := template.New("").Parse(opts.Head); err != nil {
		return nil, err
	} else if err := text.Execute(&head, map[string]string{"Dir": dir}); err != nil {
		return nil, err
	}
	values := map[string]any{"Dir": dir, "Head": head.String(), "ShimEnv": opts.ShimEnv, "Old": opts.Version == "1.7", "CRI": opts.CRI, "ContentStore": opts.ContentStore}
	if n.ownSockets() {
		values["SocketDir"] = n.SocketDir()
	}
	if err := config.Execute(&buf, values); err != nil {
		return nil, err
	}
	if opts.CRI {
		text := criConfig
		if opts.CRIConfig != "" {
			if text, err = template.New("").Parse(opts.CRIConfig); err != nil {
				return nil, err
			}
		}
		if err := text.Execute(&buf, map[string]string{"Dir": dir, "Bin": opts.Bin, "Shim": n.Tool("containerd-shim-wazero-v1")}); err != nil {
			return nil, err
		}
		if err := n.prepareCRI(); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(n.path("config.toml"), buf.Bytes(), 0o600); err != nil {
		return nil, err
	}
	// containerd makes the bundles searchable for user namespaces; so must be
	// what is above them.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	// In memory, as /run is: the bundles are there.
	if err := os.Mkdir(n.path("state"), 0o711); err != nil {
		return nil, err
	}
	state := []mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0711"}}}
	if err := mount.All(state, n.path("state")); err != nil {
		return nil, err
	}
	return n, n.Boot(ctx)
}

func (n *Node) path(elem ...string) string { return filepath.Join(append([]string{n.Dir}, elem...)...) }

// Boot starts containerd, again after [Node.Halt].
func (n *Node) Boot(ctx context.Context) error {
	logfile, err := os.OpenFile(n.path("containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logfile.Close()
	args := []string{"-c", n.path("config.toml")}
	if n.opts.Debug {
		args = append(args, "-l", "debug")
	}
	name := "containerd"
	if n.opts.Version != "" {
		name += "-" + n.opts.Version
	}
	n.cmd = exec.Command(n.Tool(name), args...)
	n.cmd.Env = append(append(os.Environ(), "PATH="+n.searchPath()), n.opts.Env...)
	n.cmd.Stdout, n.cmd.Stderr = logfile, logfile
	// What a terminal or timeout(1) sends to all of this program's group is for this
	// program: it ends its containers first, and containerd then.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.cmd.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		n.Client, err = containerd.New(n.Address(), containerd.WithDefaultNamespace(n.Namespace()))
		if err == nil {
			if _, err = n.Client.Version(ctx); err == nil && n.opts.CRI {
				err = n.criReady(ctx)
			}
			if err == nil {
				return nil
			}
			n.Client.Close()
			n.Client = nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer: %w\n%s", err, n.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Upgrade has another version of containerd take over, the pinned one if it is
// empty.
func (n *Node) Upgrade(ctx context.Context, version string) error {
	if err := n.Halt(syscall.SIGTERM); err != nil {
		return err
	}
	n.opts.Version = version
	return n.Boot(ctx)
}

// Halt ends containerd with a signal; its shims and tasks run on.
func (n *Node) Halt(sig syscall.Signal) error {
	if n.Client != nil {
		n.Client.Close()
		n.Client = nil
	}
	if n.cmd == nil || n.cmd.Process == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(sig); err != nil {
		return err
	}
	_ = n.cmd.Wait() // ended by a signal, which Wait calls an error
	n.cmd = nil
	return nil
}

// Close ends containerd and removes everything it had.
func (n *Node) Close() error {
	errs := []error{n.Halt(syscall.SIGTERM)}
	errs = append(errs, mount.UnmountRecursive(n.Dir, syscall.MNT_DETACH), os.RemoveAll(n.Dir))
	if n.opts.CRI {
		errs = append(errs, n.closeCRI())
	}
	return errors.Join(errs...)
}

// Pid is that of containerd.
func (n *Node) Pid() int { return n.cmd.Process.Pid }

// Address is containerd's socket.
func (n *Node) Address() string { return n.path("c.sock") }

// SocketDir is where the sockets of the shims are. Before containerd 2.3 it is
// the same for all containerds of a machine.
func (n *Node) SocketDir() string {
	if n.ownSockets() {
		return n.path("s")
	}
	return filepath.Join(defaults.DefaultStateDir, "s")
}

func (n *Node) ownSockets() bool { return n.opts.Version == "" || n.opts.Version >= "2.3" }

// Bundle is the directory containerd gives the shim of a container.
func (n *Node) Bundle(id string) string {
	return n.path("state", "io.containerd.runtime.v2.task", n.Namespace(), id)
}

// Log is what containerd and its shims have logged.
func (n *Node) Log() string {
	data, err := os.ReadFile(n.path("containerd.log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return string(data)
}

func (n *Node) searchPath() string {
	return n.opts.Shim + ":" + n.opts.Bin + ":" + os.Getenv("PATH")
}

// Tool is the path of a program that the node uses.
func (n *Node) Tool(name string) string {
	for _, dir := range filepath.SplitList(n.searchPath()) {
		p := filepath.Join(dir, name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p
		}
	}
	return name
}

// Ctr is a ctr command on this node.
func (n *Node) Ctr(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, n.Tool("ctr"), append([]string{"-a", n.Address(), "-n", n.Namespace()}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	return cmd
}

// Namespace is the containerd namespace that everything on this node is in.
func (n *Node) Namespace() string {
	if n.opts.CRI {
		return criNamespace
	}
	return Namespace
}

// Context has the node's namespace.
func (n *Node) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, n.Namespace())
}
