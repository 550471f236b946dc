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

// What the first process has open of what it was given: no stdin, traced or not, and
// where the runtime of Go waits.
var attackerDescriptors = []string{"0 device", "1 pipe", "2 pipe", "5 anonymous", "6 anonymous"}

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
					want := []string(nil)
					if attack == "descriptors" {
						want = attackerDescriptors
					}
					if reached := r.reached(); !slices.Equal(reached, want) {
						t.Errorf("reached: %q, want %q", reached, want)
					}
				})
			}
		})
	}
}

// throughTheFilter are the calls that nothing but the seccomp filter stops.
var throughTheFilter = map[string][]string{
	// Another program has the same walls, and so has another process.
	"exec": {"execve /busybox"},
	"fork": {"clone", "clone, beside this process", "clone, new user namespace", "clone, suspended as by vfork", "clone3", "fork"},
	// The kernel refuses a process of several threads; not what it forks.
	"namespaces": {"unshare user"},
	"kernel":     {"io_uring_setup", "userfaultfd, user mode only"},
	// The keys of the user are the host's user's.
	"keys":        {"add_key", "add_key of the user", "keyctl", "request_key"},
	"handles":     {"name_to_handle_at"},
	"sockets":     {"socket alg", "socket inet", "socket inet6", "socket netlink", "socket unix", "socket vsock", "socketpair"},
	"ipc":         {"mq_open", "msgget", "semget", "shmget"},
	"credentials": {"prctl no parent's death"},
	"descriptors": attackerDescriptors,
	// Of its own terminal.
	"terminal": {
		"TCSETS of descriptor 0", "TCSETS of descriptor 1", "TCSETS of descriptor 2",
		"TIOCSETD of descriptor 0", "TIOCSETD of descriptor 1", "TIOCSETD of descriptor 2",
	},
}

// throughTheFilterOnTheHost are more of them, with the namespaces of the host and
// all capabilities that a wasm container gets.
var throughTheFilterOnTheHost = map[string][]string{
	// Processes of the same user, which have no capability that this one lacks.
	"signals": {"kill", "kill everybody", "kill its group", "pidfd_open", "pidfd_send_signal", "rt_sigqueueinfo", "tgkill", "tkill"},
	"trace":   {"get_robust_list", "kcmp", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "ptrace attach", "ptrace seize"},
	"others":  {"ioprio_set of another", "prlimit of another", "sched_setaffinity of another", "setpriority of another", "migrate_pages of another"},
	// CAP_DAC_READ_SEARCH.
	"handles": {"open_by_handle_at"},
	"sockets": {"connect, abstract"},
}

func TestWithoutTheFilterTheOtherWallsHold(t *testing.T) {
	n := newNode(t, attackOptions(t))
	for name, c := range attackedContainers {
		t.Run(name, func(t *testing.T) {
			unfiltered := specOf(func(s *oci.Spec) { s.Process.Args = append(s.Process.Args, "unfiltered=1", "careful=1") })
			all := attackFrom(t, n, name, attackNames, unfiltered)
			maps.Copy(all, attackFrom(t, n, name, []string{"exec"}, unfiltered))
			if got := all["exec"].reached(); !slices.Equal(got, throughTheFilter["exec"]) {
				t.Errorf("the filter has not been left out: only %q", got)
			}
			for _, attack := range append([]string{"exec"}, attackNames...) {
				r, ok := all[attack]
				if !ok || len(r.Tries) == 0 {
					t.Fatalf("%s has not reported", attack)
				}
				may := throughTheFilter[attack]
				if c.opts != nil {
					may = slices.Concat(may, throughTheFilterOnTheHost[attack])
				}
				for _, call := range r.reached() {
					if !slices.Contains(may, call) {
						t.Errorf("%s: only the filter stops %q", attack, call)
					}
				}
			}
		})
	}
}

func TestATerminalIsNoWayOut(t *testing.T) {
	n := newNode(t, attackOptions(t))
	img := app(t, n, "hello.wasm")
	for _, arg := range []string{"filtered=1", "unfiltered=1"} {
		b := container(t, n, img, args("/app.wasm", "terminal", arg), oci.WithTTY)
		b.onTerminal(t)
		b.mustStart(t)
		if status := b.exit(t); status != 0 {
			t.Errorf("exit status %d", status)
		}
		r := reports(t, b.stdout.String())["terminal"]
		if len(r.Tries) == 0 {
			t.Fatalf("%s: it has not reported: %q", arg, b.stdout)
		}
		var want []string
		if arg == "unfiltered=1" {
			want = throughTheFilter["terminal"]
		}
		if got := r.reached(); !slices.Equal(got, want) {
			t.Errorf("%s: reached: %q, want %q", arg, got, want)
		}
	}
}

// notHere are the calls that fail on the host for a reason of the machine's or of the
// test's, and not because they are wrong.
var notHere = map[string]string{
	"init_module": "a kernel without", "finit_module": "a kernel without", "delete_module": "a kernel without",
	"setns time":               "not a process of several threads",
	"open /proc/1/":            "the first process may be more than root",
	"open /covered/host":       "only in a staging root",
	"open /attached/":          "only in a staging root",
	"open /dev/":               "a device that not every machine has",
	"open /sys/fs/cgroup":      "of another version of cgroups",
	"write /sys/fs/cgroup":     "of another version of cgroups",
	"TIOCLINUX":                "not a virtual terminal",
	"sched_setscheduler":       "its cgroup has no real time",
	"kexec_load":               "a kernel without",
	"userfaultfd":              "a kernel without",
	"migrate_pages":            "a kernel without",
	"fork":                     "an architecture without",
	"TIOCSCTTY":                "once is enough",
	"open /proc/kcore":         "a kernel without",
	"open /proc/sysrq-trigger": "write only",
}

// Without walls, as root of the host, the attacks succeed: where they fail in a
// container, that is the walls' doing.
func TestTheAttacksWork(t *testing.T) {
	shim := filepath.Join(attackOptions(t).Shim, "containerd-shim-wazero-v1")
	v := newVictim(t, 0)
	dir := hostDir(t)
	for name, data := range map[string][]byte{"busybox": guest(t, "busybox"), "notaprogram": []byte("not a program")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir+"/tmp", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/tmp/mine", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, attack := range append([]string{"exec"}, attackNames...) {
		if attack == "descriptors" {
			continue // has nothing to succeed in
		}
		t.Run(attack, func(t *testing.T) {
			cmd := exec.Command(shim, append([]string{"attack", attack, "careful=1", "image=" + dir}, v.args...)...)
			cmd.Args[len(cmd.Args)-1] = "bind=" + strings.TrimPrefix(v.args[1], "file=")
			// What it does to the machine, it does to a copy.
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
			if attack == "terminal" {
				_, tty := pty(t)
				defer tty.Close()
				cmd.Stdin, cmd.SysProcAttr.Setsid = tty, true
			}
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			r, ok := reports(t, string(out))[attack]
			if !ok {
				t.Fatalf("no report: %s", out)
			}
			succeeded := 0
			for _, try := range r.Tries {
				if try.Reached {
					succeeded++
					continue
				}
				if strings.HasSuffix(try.Call, " of descriptor 1") || strings.HasSuffix(try.Call, " of descriptor 2") {
					continue // no terminals
				}
				if !slices.ContainsFunc(slices.Collect(maps.Keys(notHere)), func(prefix string) bool { return strings.HasPrefix(try.Call, prefix) }) {
					t.Errorf("%s: %s", try.Call, try.Error)
				}
			}
			if succeeded == 0 {
				t.Error("nothing succeeded")
			}
		})
	}
}
