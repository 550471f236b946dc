package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The files of /proc/<pid>/ns, by the type that a specification has.
var namespaceNames = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
	specs.PIDNamespace: "pid", specs.CgroupNamespace: "cgroup",
}

func joining(pid uint32, types ...specs.LinuxNamespaceType) oci.SpecOpts {
	var opts []oci.SpecOpts
	for _, t := range types {
		name := namespaceNames[t]
		if name == "" {
			name = string(t)
		}
		opts = append(opts, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: t, Path: fmt.Sprintf("/proc/%d/ns/%s", pid, name)}))
	}
	return oci.Compose(opts...)
}

func usersImage(t *testing.T, n *node.Node) containerd.Image {
	t.Helper()
	secret := node.Regular("home/secret", []byte("of the user\n"))
	secret.Uid, secret.Gid, secret.Mode = 1000, 1000, 0o600
	return image(t, n, "namespaces", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Program("busybox", guest(t, "busybox")),
		node.Regular("etc/motd", []byte("of the image\n")), secret)
}

func TestContract31NamespacesAreJoinedByPath(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	img := usersImage(t, n)
	pause := container(t, n, img, args("/busybox", "sleep", "1000"), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}))
	pause.mustCreate(t)
	pause.mustStart(t)
	b := container(t, n, img, args("/app.wasm", "idle"), joining(pause.task.Pid(),
		specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace, specs.CgroupNamespace))
	b.mustCreate(t)
	b.mustStart(t)
	e, err := b.exec(t, "e", nil, "/app.wasm", "idle")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	for _, ns := range namespaceNames {
		want := namespaceOf(t, pause.task.Pid(), ns)
		if host := namespaceOf(t, uint32(os.Getpid()), ns); host == want {
			t.Fatalf("%s: the pause container has the host's", ns)
		}
		for what, pid := range map[string]uint32{"container": b.task.Pid(), "exec": e.Pid()} {
			if got := namespaceOf(t, pid, ns); got != want {
				t.Errorf("%s namespace of the %s: %s, want %s", ns, what, got, want)
			}
		}
	}
	if got, other := namespaceOf(t, b.task.Pid(), "mnt"), namespaceOf(t, pause.task.Pid(), "mnt"); got == other {
		t.Error("the mount namespace is the pause container's")
	}
	for _, b := range []*box{b, pause} {
		if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		b.exit(t)
		b.delete(t)
	}
	e.IO().Cancel()
	e.IO().Close()
	b.remove()
	pause.remove()
	leaves(t, n, before)
}

func TestContract31TheHostsNetworkAndPids(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"),
		oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostNamespace(specs.PIDNamespace), oci.WithHostNamespace(specs.IPCNamespace))
	b.mustCreate(t)
	b.mustStart(t)
	for ns, hosts := range map[string]bool{"net": true, "pid": true, "ipc": true, "uts": false, "mnt": false} {
		if got := namespaceOf(t, b.task.Pid(), ns) == namespaceOf(t, uint32(os.Getpid()), ns); got != hosts {
			t.Errorf("%s namespace is the host's: %v, want %v", ns, got, hosts)
		}
	}
	if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := b.exit(t); got != 143 {
		t.Errorf("exit status %d", got)
	}
}

func TestContract31ANamespaceThatCannotBeJoinedIsAnError(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "hello.wasm")
	for _, ns := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace, specs.UserNamespace} {
		for path, want := range map[string]string{"/run/no/such": "no such file", "/etc/hosts": "namespace"} {
			t.Run(string(ns)+" "+path, func(t *testing.T) {
				before := traces(t, n)
				b := container(t, n, img, args("/app.wasm"), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: ns, Path: path}))
				wantError(t, b.create(), errdefs.ErrInvalidArgument, path, want)
				b.remove()
				leaves(t, n, before)
			})
		}
	}
}

// The user namespaces of the tests map the container's ids from 0 to these on.
const mappedTo, mappedSize = 300000, 65536

var idMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: mappedTo, Size: mappedSize}}

// userContainer is a container of a user namespace; withRoot makes its root file
// system.
func userContainer(t *testing.T, n *node.Node, img containerd.Image, withRoot func(id string) containerd.NewContainerOpts, opts ...oci.SpecOpts) *box {
	t.Helper()
	ctx := n.Context(t.Context())
	id := newID(t)
	c, err := n.Client.NewContainer(ctx, id, withRoot(id), containerd.WithRuntime(node.Runtime, nil),
		containerd.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(img)}, opts...)...), containerd.WithImage(img))
	if err != nil {
		t.Fatal(err)
	}
	b := &box{Container: c, stdout: &buffer{}, stderr: &buffer{}, ctx: ctx, node: n}
	t.Cleanup(b.remove)
	return b
}

// roots are the two ways that containerd has root file systems for them: its own
// copy, with other owners, and one whose owners the kernel maps.
func roots(img containerd.Image) map[string]func(id string) containerd.NewContainerOpts {
	return map[string]func(id string) containerd.NewContainerOpts{
		"remapped": func(id string) containerd.NewContainerOpts {
			return containerd.WithUserNSRemappedSnapshot(id, img, idMappings, idMappings)
		},
		"id-mapped": func(id string) containerd.NewContainerOpts {
			return containerd.WithNewSnapshot(id, img, containerd.WithUserNSRemapperLabels(idMappings, idMappings))
		},
	}
}

func TestContract31AUserNamespaceIsAppliedAndNotEntered(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	for name, withRoot := range roots(img) {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			users := oci.WithUserNamespace(idMappings, idMappings)
			group := oci.WithAnnotations(map[string]string{groupAnnotation: fmt.Sprintf("userns-%d", rand.Uint32())})
			pause := userContainer(t, n, img, withRoot, args("/busybox", "sleep", "1000"), users, group)
			pause.mustCreate(t)
			pause.mustStart(t)
			if got, host := namespaceOf(t, pause.task.Pid(), "user"), namespaceOf(t, uint32(os.Getpid()), "user"); got == host {
				t.Fatal("the pause container has no user namespace")
			}
			mine := t.TempDir()
			if err := os.Chmod(mine, 0o711); err != nil {
				t.Fatal(err)
			}
			volume := filepath.Join(mine, "volume")
			if err := os.Mkdir(volume, 0o700); err != nil {
				t.Fatal(err)
			}
			theirs := specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind"}, UIDMappings: idMappings, GIDMappings: idMappings}
			scratch := specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0700"}}
			opts := []oci.SpecOpts{
				args("/app.wasm", "cat", "/etc/motd", "write", "/made", "x", "write", "/scratch/made", "x", "write", "made", "x", "write", "/volume/made", "x",
					"write", "/dev/null", "x", "print", "done", "idle"),
				group, oci.WithProcessCwd("/new/cwd"), oci.WithMounts([]specs.Mount{theirs, scratch}), oci.WithAdditionalGIDs("root"),
				joining(pause.task.Pid(), specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace),
				specOf(func(s *oci.Spec) { s.Process.User.AdditionalGids = []uint32{5, 7} }),
			}
			// One of them is told the mappings, the other is to ask the namespace.
			for what, more := range map[string]oci.SpecOpts{"with mappings": users, "without": specOf(func(*oci.Spec) {})} {
				b := userContainer(t, n, img, withRoot, append(opts, more)...)
				b.mustCreate(t)
				b.mustStart(t)
				eventually(t, "the guest has written everywhere", func() bool {
					return strings.HasSuffix(b.stdout.String(), "done\n") || strings.Contains(b.stdout.String(), "error")
				})
				if got := b.stdout.String(); got != "of the image\ndone\n" {
					t.Errorf("%s: %q", what, got)
				}
				pid := b.task.Pid()
				for field, want := range map[string]string{
					"Uid": "300000 300000 300000 300000", "Gid": "300000 300000 300000 300000", "Groups": "300005 300007",
					"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000", "CapInh": "0000000000000000", "NoNewPrivs": "1",
				} {
					if got := strings.Join(strings.Fields(statusField(t, pid, field)), " "); got != want {
						t.Errorf("%s: %s: %s, want %s", what, field, got, want)
					}
				}
				for _, ns := range []string{"net", "ipc", "uts", "pid"} {
					if got, want := namespaceOf(t, pid, ns), namespaceOf(t, pause.task.Pid(), ns); got != want {
						t.Errorf("%s: %s namespace %s, want %s", what, ns, got, want)
					}
				}
				for path, want := range map[string]uint32{
					"/made": mappedTo, "/scratch": mappedTo, "/scratch/made": mappedTo, "/new": mappedTo, "/new/cwd": mappedTo, "/new/cwd/made": mappedTo,
					"/volume": mappedTo, "/volume/made": mappedTo, "/home/secret": mappedTo + 1000,
				} {
					var st unix.Stat_t
					if err := unix.Stat(fmt.Sprintf("/proc/%d/root%s", pid, path), &st); err != nil || st.Uid != want || st.Gid != want {
						t.Errorf("%s: %s is %d:%d's, %v, want %d", what, path, st.Uid, st.Gid, err, want)
					}
				}
				var st unix.Stat_t
				if err := unix.Stat(volume+"/made", &st); err != nil || st.Uid != 0 || st.Gid != 0 {
					t.Errorf("%s: the volume's file is %d:%d's, %v, want root's", what, st.Uid, st.Gid, err)
				}
				e, status := b.runExec(t, "user", func(p *specs.Process) { p.User = specs.User{UID: 1000, GID: 1000} }, "/app.wasm", "cat", "/home/secret")
				if status != 0 || e.stdout.String() != "of the user\n" {
					t.Errorf("%s: exec as a user of the container: %d, %q", what, status, e.stdout)
				}
				if _, status := b.runExec(t, "other", func(p *specs.Process) { p.User = specs.User{UID: 1001, GID: 1001} }, "/app.wasm", "cat", "/home/secret"); status == 0 {
					t.Errorf("%s: a user has read the file of another", what)
				}
				_, err := b.exec(t, "unmapped", func(p *specs.Process) { p.User.UID = mappedSize }, "/app.wasm")
				wantError(t, err, errdefs.ErrInvalidArgument, "uid 65536", "not mapped")
				if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if got := b.exit(t); got != 143 {
					t.Errorf("exit status %d", got)
				}
				b.delete(t)
				b.remove()
				if err := os.Remove(volume + "/made"); err != nil {
					t.Error(err)
				}
			}
			pause.remove()
			leaves(t, n, before)
		})
	}
}

func TestContract31ANewUserNamespaceIsAppliedToo(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	root := roots(img)["id-mapped"]
	b := userContainer(t, n, img, root, args("/app.wasm", "cat", "/etc/motd", "idle"), oci.WithUserNamespace(idMappings, idMappings),
		specOf(func(s *oci.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1000} }))
	b.mustCreate(t)
	if got := statusField(t, b.task.Pid(), "Uid"); !strings.HasPrefix(got, "301000\t") {
		t.Errorf("uid %s", got)
	}
	if got, host := namespaceOf(t, b.task.Pid(), "user"), namespaceOf(t, uint32(os.Getpid()), "user"); got != host {
		t.Error("the user namespace has been entered")
	}
	before := traces(t, n)
	bad := userContainer(t, n, img, root, args("/app.wasm"), oci.WithUserNamespace(idMappings, idMappings),
		specOf(func(s *oci.Spec) { s.Process.User.UID = 70000 }))
	wantError(t, bad.create(), errdefs.ErrInvalidArgument, "uid 70000", "not mapped")
	bad.remove()
	leaves(t, n, before)
}

// hostTree is a directory of the host with a file system mounted below it.
func hostTree(t *testing.T, fstype string) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/tmp"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir+"/below", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := mount.All([]mount.Mount{{Type: fstype, Source: "below", Options: []string{"mode=0755"}}}, dir+"/below"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(dir+"/below", 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestContract31MountsMapIDs(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	dir := hostTree(t, "tmpfs")
	users := oci.WithUserNamespace(idMappings, idMappings)
	write := func(m specs.Mount, opts ...oci.SpecOpts) (top, below bool) {
		t.Helper()
		m.Destination, m.Type, m.Source = "/v", "bind", dir
		for i, path := range []string{"/v/file", "/v/below/file"} {
			b := userContainer(t, n, img, roots(img)["id-mapped"], append([]oci.SpecOpts{args("/app.wasm", "write", path, "x"), oci.WithMounts([]specs.Mount{m})}, opts...)...)
			b.mustCreate(t)
			b.mustStart(t)
			ok := b.exit(t) == 0
			b.delete(t)
			if i == 0 {
				top = ok
			} else {
				below = ok
			}
		}
		for _, path := range []string{dir + "/file", dir + "/below/file"} {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err == nil && st.Uid != 0 {
				t.Errorf("%s is %d's, want root's", path, st.Uid)
			}
			_ = os.Remove(path) // it may not be there
		}
		return top, below
	}
	for _, c := range []struct {
		name       string
		mount      specs.Mount
		top, below bool
	}{
		{"none", specs.Mount{Options: []string{"rbind"}}, false, false},
		{"the mount's own", specs.Mount{Options: []string{"rbind"}, UIDMappings: idMappings, GIDMappings: idMappings}, true, false},
		{"idmap: the container's", specs.Mount{Options: []string{"rbind", "idmap"}}, true, false},
		{"ridmap: of what is mounted below too", specs.Mount{Options: []string{"rbind", "ridmap"}}, true, true},
	} {
		if top, below := write(c.mount, users); top != c.top || below != c.below {
			t.Errorf("%s: could write to the mount: %v, below it: %v; want %v, %v", c.name, top, below, c.top, c.below)
		}
	}
	t.Run("a file system that cannot", func(t *testing.T) {
		before := traces(t, n)
		m := specs.Mount{Destination: "/v", Type: "bind", Source: hostTree(t, "ramfs") + "/below", Options: []string{"bind", "idmap"}}
		b := userContainer(t, n, img, roots(img)["id-mapped"], args("/app.wasm"), users, oci.WithMounts([]specs.Mount{m}))
		wantError(t, b.create(), errdefs.ErrInvalidArgument, "/v", "id mappings", "does not support")
		b.remove()
		leaves(t, n, before)
	})
	t.Run("of no namespace", func(t *testing.T) {
		m := specs.Mount{Destination: "/v", Type: "bind", Source: dir, Options: []string{"bind", "idmap"}}
		b := container(t, n, img, args("/app.wasm"), oci.WithMounts([]specs.Mount{m}))
		wantError(t, b.create(), errdefs.ErrInvalidArgument, "/v", "idmap")
	})
}

func TestAMountIsReadOnlyWithWhatIsBelow(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	dir := hostTree(t, "tmpfs")
	for option, want := range map[string][2]bool{"rw": {true, true}, "ro": {false, true}, "rro": {false, false}} {
		for i, path := range []string{"/v/file", "/v/below/file"} {
			_, status := run(t, n, img, args("/app.wasm", "write", path, "x"), bind(dir, "/v", option))
			if (status == 0) != want[i] {
				t.Errorf("%s: writing %s: exit status %d", option, path, status)
			}
		}
	}
}

func TestPathsAreMaskedAndReadOnly(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	masked := specOf(func(s *oci.Spec) {
		s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/home", "/etc/motd", "/none/at/all", "/etc/motd/none")
		s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/etc", "/app.wasm", "/none")
	})
	b, status := run(t, n, img, args("/app.wasm", "ls", "/home", "cat", "/etc/motd", "write", "/free", "x", "print", "done"), masked)
	if status != 0 || b.stdout.String() != "done\n" {
		t.Errorf("%d, %q: want nothing of what is masked", status, b.stdout)
	}
	for _, path := range []string{"/etc/new", "/app.wasm", "/home/new"} {
		if _, status := run(t, n, img, args("/app.wasm", "write", path, "x"), masked); status == 0 {
			t.Errorf("%s could be written", path)
		}
	}
	c := container(t, n, img, args("/app.wasm", "idle"), masked)
	c.mustCreate(t)
	c.mustStart(t)
	if e, status := c.runExec(t, "e", nil, "/app.wasm", "cat", "/home/secret"); status == 0 {
		t.Errorf("an exec has read what is masked: %q", e.stdout)
	}
}

func TestDevicesOfTheSpecificationAreMade(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	allow := func(major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
	}
	mode := os.FileMode(0o640)
	uid := uint32(1000)
	devices := specOf(func(s *oci.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
			{Path: "/dev/deep/mine", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &uid},
			{Path: "/dev/not-allowed", Type: "c", Major: 1, Minor: 11},
			{Path: "/dev/pipe", Type: "p"},
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, allow(1, 5))
	})
	b := container(t, n, img, args("/app.wasm", "idle"), devices)
	b.mustCreate(t)
	for path, want := range map[string]struct{ mode, uid, major, minor uint32 }{
		"/dev/null": {unix.S_IFCHR | 0o666, 0, 1, 3}, "/dev/deep/mine": {unix.S_IFCHR | 0o640, 1000, 1, 5},
		"/dev/not-allowed": {unix.S_IFCHR | 0o666, 0, 1, 11}, "/dev/pipe": {unix.S_IFIFO | 0o666, 0, 0, 0},
	} {
		var st unix.Stat_t
		err := unix.Lstat(fmt.Sprintf("/proc/%d/root%s", b.task.Pid(), path), &st)
		if err != nil || st.Mode != want.mode || st.Uid != want.uid || unix.Major(st.Rdev) != want.major || unix.Minor(st.Rdev) != want.minor {
			t.Errorf("%s: %+v, %v, want %+v", path, st, err, want)
		}
	}
	if b, status := run(t, n, img, args("/app.wasm", "write", "/dev/deep/mine", "x", "print", "done", "write", "/dev/not-allowed", "x"), devices); status == 0 || !strings.HasPrefix(b.stdout.String(), "done\n") {
		t.Errorf("%d, %q: want the device that is allowed, and the other refused", status, b.stdout)
	}
	before := traces(t, n)
	bad := container(t, n, img, args("/app.wasm"), specOf(func(s *oci.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/app.wasm", Type: "c", Major: 1, Minor: 3}}
	}))
	wantError(t, bad.create(), errdefs.ErrInvalidArgument, "device /app.wasm", "file exists")
	bad.remove()
	leaves(t, n, before)
}

func TestSysctlsAreThoseOfTheContainersNamespaces(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	sysctls := func(values map[string]string) oci.SpecOpts {
		return specOf(func(s *oci.Spec) { s.Linux.Sysctl = values })
	}
	const portStart = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
	read := func(ctx context.Context, pid uint32) string {
		t.Helper()
		out, err := nsenter(ctx, pid, "cat", portStart, "/proc/sys/kernel/shmmni")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(out), " ")
	}
	host := read(t.Context(), uint32(os.Getpid()))
	b := container(t, n, img, args("/app.wasm", "idle"), sysctls(map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shmmni": "99"}))
	b.mustCreate(t)
	if got, want := read(t.Context(), b.task.Pid()), "77 99"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := read(t.Context(), uint32(os.Getpid())); got != host {
		t.Errorf("the host's were %s and are %s", host, got)
	}
	for _, c := range []struct {
		name, key, want string
		opt             oci.SpecOpts
	}{
		{"the host's network", "net.ipv4.ip_forward", "network namespace", oci.WithHostNamespace(specs.NetworkNamespace)},
		{"the host's network by path", "net.ipv4.ip_forward", "network namespace", oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: fmt.Sprintf("/proc/%d/ns/net", os.Getpid())})},
		{"the machine's", "vm.swappiness", "vm.swappiness", specOf(func(*oci.Spec) {})},
		{"none", "net.no.such", "no such file", specOf(func(*oci.Spec) {})},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := traces(t, n)
			b := container(t, n, img, args("/app.wasm"), c.opt, sysctls(map[string]string{c.key: "1"}))
			wantError(t, b.create(), errdefs.ErrInvalidArgument, "sysctl "+c.key, c.want)
			b.remove()
			leaves(t, n, before)
		})
	}
}

// nsenter runs a program in the network, IPC and UTS namespaces of a process.
func nsenter(ctx context.Context, pid uint32, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(pid), "-n", "-i", "-u"}, args...)...).Output()
	return string(out), err
}
