package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The attacks are in internal/instance/attack.go: native code in the instance
// process, at the moment the guest would run.

// attackNames are those of every container; terminal is for one that has one, and
// exec comes alone, since it may not come back.
var attackNames = []string{
	"descriptors", "signals", "trace", "mount", "namespaces", "kernel", "keys", "machine", "files", "handles", "others", "sockets", "ipc", "terminal", "fork", "credentials",
}

type attackReport struct {
	Attack string
	Tries  []struct {
		Call    string
		Reached bool
		Error   string
	}
}

// reports are what an attack has printed, by its name.
func reports(t *testing.T, out string) map[string]attackReport {
	t.Helper()
	all := map[string]attackReport{}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var r attackReport
		line = strings.TrimSpace(line)
		if line == "EXECUTED" {
			line = `{"attack":"exec","tries":[{"call":"execve /busybox","reached":true}]}`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Errorf("not a report: %q", line)
			continue
		}
		all[r.Attack] = r
	}
	return all
}

// reached are the calls of an attack that nothing has stopped.
func (r attackReport) reached() (calls []string) {
	for _, try := range r.Tries {
		if try.Reached {
			calls = append(calls, try.Call)
		}
	}
	slices.Sort(calls)
	return calls
}

// A victim is what attacks are aimed at: a process of the host, a file and sockets.
type victim struct {
	pid  int
	args []string
}

func newVictim(t *testing.T, uid uint32) victim {
	t.Helper()
	dir := hostDir(t)
	file := filepath.Join(dir, "secret")
	if err := os.WriteFile(file, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !alive(cmd.Process.Pid) {
			t.Error("the process of the host was killed")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	v := victim{pid: cmd.Process.Pid}
	abstract := fmt.Sprintf("@wz-victim-%d", cmd.Process.Pid)
	for _, name := range []string{dir + "/socket", abstract} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	v.args = []string{fmt.Sprintf("pid=%d", v.pid), "file=" + file, "socket=" + dir + "/socket", "abstract=" + abstract, "bind=/bind"}
	return v
}

// hostDir is a directory of the host that all may read.
func hostDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/tmp"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// attackShim is the shim that is built to attack.
func attackOptions(t *testing.T) node.Options {
	t.Helper()
	need(t)
	opts := options()
	opts.Shim = filepath.Join(bin(), "attack")
	if _, err := os.Stat(filepath.Join(opts.Shim, "containerd-shim-wazero-v1")); err != nil {
		t.Fatal("needs what `make test` builds:", err)
	}
	return opts
}

// attackedContainers are the specifications of the containers that attack, by name,
// and their users.
var attackedContainers = map[string]struct {
	uid  uint32
	opts []oci.SpecOpts
}{
	"root":            {0, nil},
	"user":            {1000, nil},
	"privileged root": {0, privilegedOnTheHost},
	"privileged user": {1000, privilegedOnTheHost},
}

// privilegedOnTheHost is all that a specification can give.
var privilegedOnTheHost = []oci.SpecOpts{
	oci.WithPrivileged, oci.WithAllDevicesAllowed,
	oci.WithHostNamespace(specs.PIDNamespace), oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostNamespace(specs.IPCNamespace),
	oci.WithHostNamespace(specs.UTSNamespace), oci.WithHostNamespace(specs.CgroupNamespace),
	specOf(func(s *oci.Spec) { s.Hostname, s.Process.NoNewPrivileges = "", false }),
}

// attackFrom runs attacks in a container, and reads what they report.
func attackFrom(t *testing.T, n *node.Node, name string, names []string, more ...oci.SpecOpts) map[string]attackReport {
	t.Helper()
	c := attackedContainers[name]
	v := newVictim(t, c.uid)
	img := image(t, n, "attack", node.Regular("app.wasm", guest(t, "hello.wasm")), node.Program("busybox", guest(t, "busybox")),
		node.Program("notaprogram", []byte("not a program")), node.Regular("tmp/mine", nil), node.Regular("bind", nil))
	opts := append(slices.Clone(c.opts), args(append([]string{"/app.wasm", strings.Join(names, ","), "careful=1"}, v.args...)...),
		bind(strings.TrimPrefix(v.args[1], "file="), "/bind", "ro"),
		specOf(func(s *oci.Spec) {
			s.Process.User = specs.User{UID: c.uid, GID: c.uid}
			if s.Process.Capabilities != nil {
				s.Process.Capabilities.Ambient = s.Process.Capabilities.Permitted
			}
		}))
	b, status := run(t, n, img, append(opts, more...)...)
	if status != 0 {
		t.Errorf("exit status %d, %q", status, b.stderr)
	}
	return reports(t, b.stdout.String())
}

func TestIfTheEngineBrokeEveryAttackFails(t *testing.T) {
	n := newNode(t, attackOptions(t))
	for _, name := range slices.Sorted(maps.Keys(attackedContainers)) {
		t.Run(name, func(t *testing.T) {
			all := attackFrom(t, n, name, attackNames)
			maps.Copy(all, attackFrom(t, n, name, []string{"exec"}))
			for _, attack := range append([]string{"exec"}, attackNames...) {
				t.Run(attack, func(t *testing.T) {
					r, ok := all[attack]
					if !ok || len(r.Tries) == 0 {
						t.Fatal("it has not reported")
					}
					if reached := r.reached(); len(reached) > 0 {
						t.Errorf("reached: %q", reached)
					}
				})
			}
		})
	}
}
