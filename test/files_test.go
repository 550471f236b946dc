package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// lines are what the guest wasi-c.wasm printed: one for each call.
func lines(b *box) []string {
	return strings.Split(strings.TrimSuffix(b.stdout.String(), "\n"), "\n")
}

// allFail fails the test for each call that was a success.
func allFail(t *testing.T, calls []string, b *box) {
	t.Helper()
	got := lines(b)
	if len(got) != len(calls) {
		t.Fatalf("%d calls, %d answers: %q %q", len(calls), len(got), b.stdout, b.stderr)
	}
	for i, line := range got {
		if f := strings.Fields(line); len(f) < 2 || f[1] == "0" {
			t.Errorf("%s: %s", calls[i], line)
		}
	}
}

// attempts are all the calls of WASI that could read, change, make or find a file
// by that path.
func attempts(path string) (calls [][]string) {
	return [][]string{
		{"open", "r", "/", path, "-"}, {"open", "w", "/", path, "ctwr"}, {"open", "d", "/", path, "d"}, {"open", "x", "/", path, "cxw"},
		{"stat", "/", path}, {"mkdir", "/", path}, {"rmdir", "/", path}, {"unlink", "/", path}, {"readlink", "/", path}, {"utimes", "/", path},
		{"rename", "/", path, "/", "stolen"}, {"rename", "/", "etc/mine", "/", path}, {"link", "/", path, "/", "linked"}, {"linkf", "/", path, "/", "linked"},
		{"link", "/", "etc/mine", "/", path}, {"symlink", "etc", "/", path},
	}
}

func TestAGuestDoesNotLeaveItsFilesByAnyPath(t *testing.T) {
	n := useNode(t)
	dir, untouched := canary(t)
	up := strings.Repeat("../", 30)
	img := image(t, n, "stays", node.Regular("app.wasm", guest(t, "wasi-c.wasm")), node.Regular("etc/mine", []byte("x")), node.Regular("a/b/c/d", nil),
		link("absolute", dir), link("climbing", up+dir[1:]), link("a/b/relative", up+dir[1:]), link("first", "second"), link("second", "a/b/relative"),
		link("process", "/proc/self/root"+dir), link("loop", "loop"), link("slashes", "//..//"+dir+"/."))
	for name, c := range map[string]struct {
		setup []string
		path  string
	}{
		"its own path":                 {nil, dir[1:] + "/file"},
		"an absolute path":             {nil, dir + "/file"},
		"a path that climbs":           {nil, up + dir[1:] + "/file"},
		"down and up":                  {nil, "a/b/c/" + up + dir[1:] + "/file"},
		"dots and slashes":             {nil, "a/./b//.././../../.." + dir + "/file"},
		"an absolute link":             {nil, "absolute/file"},
		"a link that climbs":           {nil, "climbing/file"},
		"a link further down":          {nil, "a/b/relative/file"},
		"links in turn":                {nil, "first/file"},
		"a link to a process":          {nil, "process/file"},
		"a link with slashes and dots": {nil, "slashes/file"},
		"up, after a link":             {nil, "absolute/../" + filepath.Base(dir) + "/file"},
		"a loop":                       {nil, "loop/file"},
		"a trailing slash":             {nil, "absolute/file/"},
		"a byte of zero":               {nil, "absolute/file%00"},
		"a name that is too long":      {nil, "*300*absolute"},
		"a path that is too long":      {nil, "*3000*a/"},
		"the parent":                   {nil, ".."},
		"the guest's link":             {[]string{"symlink", up + dir[1:], "/", "mine"}, "mine/file"},
		"the guest's link, moved":      {[]string{"symlink", up + dir[1:], "/", "a/b/c/mine", "rename", "/", "a/b/c/mine", "/", "moved"}, "moved/file"},
		"the guest's link to a link":   {[]string{"symlink", "a/b/relative", "/", "mine"}, "mine/file"},
		"a hard link to a link":        {[]string{"link", "/", "climbing", "/", "hard"}, "hard/file"},
		"below a file":                 {nil, "app.wasm/../../" + dir + "/file"},
	} {
		t.Run(name, func(t *testing.T) {
			var calls []string
			ops := []string{"/app.wasm"}
			for _, a := range attempts(c.path) {
				calls = append(calls, strings.Join(a, " "))
				ops = append(ops, a...)
			}
			b, _ := run(t, n, img, args(append(slices.Concat(ops[:1], c.setup), ops[1:]...)...))
			setup := 0
			for _, word := range c.setup {
				if word == "symlink" || word == "rename" || word == "link" {
					setup++
				}
			}
			got := lines(b)
			for _, line := range got[:min(setup, len(got))] {
				if !strings.HasSuffix(line, ": 0") {
					t.Errorf("setup: %s", line)
				}
			}
			b.stdout = &buffer{}
			fmt.Fprintln(b.stdout, strings.Join(got[min(setup, len(got)):], "\n"))
			allFail(t, calls, b)
			untouched(t)
		})
	}
	// The same paths in the image itself are the image's.
	t.Run("the host's paths in the image", func(t *testing.T) {
		img := image(t, n, "stays-same", node.Regular("app.wasm", guest(t, "wasi-c.wasm")), node.Regular(dir[1:]+"/file", []byte("of the image")),
			link("absolute", dir), link("climbing", up+dir[1:]))
		b, _ := run(t, n, img, args("/app.wasm", "open", "f", "/", "absolute/file", "-", "read", "f", "open", "g", "/", "climbing/new", "cw", "put", "g", "x",
			"unlink", "/", "absolute/file", "mkdir", "/", "climbing/dir"))
		if got, want := b.stdout.String(), "open: 0\nread: 0 of the image\nopen: 0\nput: 0\nunlink: 0\nmkdir: 0\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		untouched(t)
	})
}

func TestADirectoryThatWasMovedAwayIsNoWayOut(t *testing.T) {
	n := useNode(t)
	top := t.TempDir()
	if err := os.MkdirAll(top+"/volume/in/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"secret", "volume/in/file"} {
		if err := os.WriteFile(filepath.Join(top, f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img := image(t, n, "moved", node.Regular("app.wasm", guest(t, "wasi-c.wasm")), node.Regular("mine/x", nil))
	b := container(t, n, img, bind(top+"/volume", "/volume"), args("/app.wasm",
		"open", "d", "/", "volume/in", "d", "open", "e", "d", "deep", "d", "mkdir", "/", "volume/ready", "exists", "/", "volume/go",
		"open", "f", "d", "../secret", "-", "open", "f", "e", "../../secret", "-", "stat", "d", "..", "stat", "e", "../..", "open", "g", "d", "..", "d", "mkdir", "d", "../made", "link", "d", "../secret", "/", "got",
		"rename", "d", "../secret", "/", "got", "unlink", "d", "../secret", "stat", "/", "got"))
	b.mustCreate(t)
	b.mustStart(t)
	eventually(t, "the guest has opened its directories", func() bool {
		_, err := os.Stat(top + "/volume/ready")
		return err == nil
	})
	if err := os.Rename(top+"/volume/in", top+"/out"); err != nil {
		t.Fatal(err)
	}
	before := inventory(t, top+"/out")
	if err := os.Mkdir(top+"/volume/go", 0o755); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	got := lines(b)
	if len(got) < 4 || got[0] != "open: 0" || got[1] != "open: 0" {
		t.Fatalf("%q", b.stdout)
	}
	b.stdout = &buffer{}
	fmt.Fprintln(b.stdout, strings.Join(got[4:], "\n"))
	allFail(t, got[4:], b)
	for path, was := range inventory(t, top+"/out") {
		if before[path] != was {
			t.Errorf("%s: %s, was %s", path, was, before[path])
		}
	}
	if data, err := os.ReadFile(top + "/secret"); string(data) != "secret" {
		t.Errorf("%q, %v", data, err)
	}
	// The kernel's part: a process of the container, with a descriptor of that
	// directory, gets no further by "..".
	t.Run("for the kernel", func(t *testing.T) {
		if err := os.MkdirAll(top+"/volume/again", 0o755); err != nil {
			t.Fatal(err)
		}
		idle := container(t, n, usersImage(t, n), args("/app.wasm", "idle"), bind(top+"/volume", "/volume"))
		idle.mustCreate(t)
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/root/volume/again", idle.task.Pid()), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := os.Rename(top+"/volume/again", top+"/again"); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"..", "../secret"} {
			if up, err := unix.Openat(fd, path, unix.O_PATH|unix.O_CLOEXEC, 0); !errors.Is(err, syscall.ENOENT) {
				unix.Close(up)
				t.Errorf("%s: %v", path, err)
			}
		}
	})
}

func TestDescriptorsOfWhatIsGoneLeadNowhere(t *testing.T) {
	n := useNode(t)
	_, untouched := canary(t)
	img := image(t, n, "gone", node.Regular("app.wasm", guest(t, "wasi-c.wasm")), node.Regular("d/e/f", []byte("x")), node.Regular("empty/x", nil))
	b, _ := run(t, n, img, args("/app.wasm", "unlink", "/", "empty/x", "open", "r", "/", "empty", "d", "rmdir", "/", "empty",
		"open", "x", "r", "../etc", "-", "open", "x", "r", "new", "cw", "mkdir", "r", "new", "stat", "r", "..", "stat", "r", "x", "rename", "/", "d/e/f", "r", "f"))
	got := lines(b)
	if !slices.Equal(got[:min(3, len(got))], []string{"unlink: 0", "open: 0", "rmdir: 0"}) {
		t.Fatalf("%q", b.stdout)
	}
	b.stdout = &buffer{}
	fmt.Fprintln(b.stdout, strings.Join(got[3:], "\n"))
	allFail(t, got[3:], b)
	untouched(t)
}

func TestLinksAndRenamesDoNotCrossMounts(t *testing.T) {
	n := useNode(t)
	volume, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	for _, path := range []string{volume + "/inside", file} {
		if err := os.WriteFile(path, []byte("the host's"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before := inventory(t, filepath.Dir(file))
	img := image(t, n, "across", node.Regular("app.wasm", guest(t, "wasi-c.wasm")), node.Regular("mine", nil), node.Regular("dir/x", nil))
	b, _ := run(t, n, img, bind(volume, "/v"), bind(volume, "/w", "ro"), bind(file, "/etc/file", "ro"), args("/app.wasm",
		"link", "/", "v/inside", "/", "got", "rename", "/", "v/inside", "/", "got", "link", "/", "mine", "/", "v/mine", "rename", "/", "mine", "/", "v/mine",
		"rename", "/", "v", "/", "moved", "rmdir", "/", "v", "rename", "/", "dir", "/", "v", "unlink", "/", "etc/file", "rename", "/", "mine", "/", "etc/file", "rename", "/", "etc/file", "/", "got",
		"link", "/", "v/inside", "/", "w/other", "unlink", "/", "w/inside", "open", "f", "/", "w/inside", "w", "open", "f", "/", "etc/file", "tw", "utimes", "/", "w/inside", "utimes", "/", "etc/file", "mkdir", "/", "w/d"))
	got := lines(b)
	if len(got) != 17 {
		t.Fatalf("%d answers: %q %q", len(got), b.stdout, b.stderr)
	}
	allFail(t, got, b)
	if after := inventory(t, filepath.Dir(file)); after[file] != before[file] {
		t.Errorf("%s, was %s", after[file], before[file])
	}
	if data, err := os.ReadFile(volume + "/inside"); string(data) != "the host's" {
		t.Errorf("%q, %v", data, err)
	}
}

// kernelState are the types of what a guest is not to see. A devtmpfs may be
// there: its devices are closed.
var kernelState = []string{
	"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "binfmt_misc", "fusectl", "pstore", "efivarfs", "devpts", "nsfs", "selinuxfs",
}

// kernelTree is a directory of the host with one of each kind of kernel file system
// below it that this kernel has.
func kernelTree(t *testing.T) (dir string, types []string) {
	t.Helper()
	dir = t.TempDir()
	have, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	unmount := func(path string) { t.Cleanup(func() { _ = mount.UnmountAll(path, unix.MNT_DETACH) }) }
	for _, fstype := range kernelState {
		if !strings.Contains(string(have), "\t"+fstype+"\n") || fstype == "cgroup" {
			continue
		}
		path := filepath.Join(dir, fstype)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := mount.All([]mount.Mount{{Type: fstype, Source: fstype}}, path); err != nil {
			t.Logf("%s: %v", fstype, err) // another one of it, only the kernel may have
			continue
		}
		unmount(path)
		types = append(types, fstype)
	}
	for name, source := range map[string]string{"environ": "/proc/1/environ", "netns": "/proc/self/ns/net", "core_pattern": "/proc/sys/kernel/core_pattern"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := mount.All([]mount.Mount{{Type: "bind", Source: source, Options: []string{"bind"}}}, path); err != nil {
			t.Fatal(err)
		}
		unmount(path)
	}
	return dir, types
}

// noKernelState looks at the mounts of a process.
func noKernelState(t *testing.T, pid uint32) {
	t.Helper()
	for path, m := range mountsAt(t, pid) {
		if slices.Contains(kernelState, m.fstype) {
			t.Errorf("%s is %+v", path, m)
		}
	}
}

func TestTheKernelsFilesComeInByNoBindMount(t *testing.T) {
	n := useNode(t)
	tree, types := kernelTree(t)
	if len(types) < 5 {
		t.Errorf("only %v", types)
	}
	img := image(t, n, "kernel", node.Regular("app.wasm", guest(t, "wasi-c.wasm")))
	secrets := []string{
		"self/mem", "self/environ", "self/exe", "self/fd/0", "self/maps", "1/environ", "1/root", "1/mem", "mounts", "kcore", "sysrq-trigger", "sys/kernel/core_pattern", "kernel/mm",
		"memory/cgroup.procs", "cgroup.procs", "0", "mem", "vda", "kmsg",
	}
	for name, c := range map[string]struct {
		source string
		below  []string // where in it the kernel's files would be
	}{
		"the host's root":               {"/", []string{"proc", "sys", "sys/fs/cgroup", "dev", "dev/fd", "proc/1/root/proc"}},
		"the host's root, by a process": {"/proc/thread-self/root", []string{"proc", "sys"}},
		"/proc":                         {"/proc", []string{"", "1/root/proc"}},
		"a process":                     {"/proc/self", []string{"", ".."}},
		"/sys":                          {"/sys", []string{"", "fs/cgroup"}},
		"cgroups":                       {"/sys/fs/cgroup", []string{"", "unified"}},
		"/dev":                          {"/dev", []string{"", "fd", "pts"}},
		"descriptors":                   {"/dev/fd", []string{""}},
		"a directory with all of them":  {tree, append(types, "")},
	} {
		for _, options := range [][]string{{"rbind", "rw"}, {"rbind", "ro"}, {"bind", "rw"}, {"rbind", "rro", "rslave"}} {
			t.Run(name+" "+strings.Join(options, ","), func(t *testing.T) {
				before := traces(t, n)
				ops := []string{"/app.wasm"}
				var calls []string
				for _, at := range c.below {
					for _, s := range secrets {
						calls = append(calls, filepath.Join(at, s))
						ops = append(ops, "open", "f", "/", filepath.Join("host", at, s), "r")
					}
				}
				m := specs.Mount{Destination: "/host", Type: "bind", Source: c.source, Options: options}
				b := container(t, n, img, args(ops...), oci.WithMounts([]specs.Mount{m}))
				b.mustCreate(t)
				noKernelState(t, b.task.Pid())
				b.mustStart(t)
				b.exit(t)
				allFail(t, calls, b)
				b.remove()
				leaves(t, n, before)
			})
		}
	}
	t.Run("a file", func(t *testing.T) {
		for _, source := range []string{"/proc/self/mem", "/proc/1/environ", "/proc/sys/kernel/core_pattern", tree + "/environ", tree + "/netns", "/sys/kernel/mm/transparent_hugepage/enabled"} {
			if _, err := os.Stat(source); err != nil {
				continue
			}
			b := container(t, n, img, args("/app.wasm", "open", "f", "/", "host/file", "-", "read", "f"), bind(source, "/host/file"))
			b.mustCreate(t)
			noKernelState(t, b.task.Pid())
			b.mustStart(t)
			b.exit(t)
			if got := b.stdout.String(); got != "open: 0\nread: 0 \n" {
				t.Errorf("%s: %q, want nothing in it", source, got)
			}
		}
	})
	t.Run("a mount that was meant for a kernel file system", func(t *testing.T) {
		volume := t.TempDir()
		if err := os.WriteFile(volume+"/file", []byte("shown"), 0o644); err != nil {
			t.Fatal(err)
		}
		b := container(t, n, img, args("/app.wasm", "open", "f", "/", "host/proc/mark/file", "-", "read", "f"), bind(tree, "/host"), bind(volume, "/host/proc/mark"))
		b.mustCreate(t)
		b.mustStart(t)
		b.exit(t)
		if got := b.stdout.String(); got != "open: 0\nread: 0 shown\n" {
			t.Errorf("%q", got)
		}
	})
}

// rawRun runs the probe in a bundle of the test's own, whose specification change
// makes, and hands the pid to look, once it is created.
func rawRun(t *testing.T, dir string, change func(*specs.Spec), look func(pid uint32)) {
	t.Helper()
	n := useNode(t)
	id := filepath.Base(dir)
	var spec specs.Spec
	if err := json.Unmarshal([]byte(minimal(t, id, "/app.wasm", "idle")), &spec); err != nil {
		t.Fatal(err)
	}
	change(&spec)
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, n, id, dir)
	ctx := n.Context(t.Context())
	defer func() { _, _ = r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id}) }()
	created, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: dir})
	if err != nil {
		t.Error(err)
		return
	}
	look(created.Pid)
	if _, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
		t.Error(err)
	}
}

func TestTheKernelsFilesComeInByNoRootFileSystem(t *testing.T) {
	need(t)
	t.Run("the host's own", func(t *testing.T) {
		dir := bundle(t, newID(t), "", "probe.wasm")
		before := inventory(t, "/etc")
		rawRun(t, dir, func(s *specs.Spec) {
			s.Root = &specs.Root{Path: "/", Readonly: true}
			s.Process.Args = []string{dir + "/rootfs/app.wasm", "idle"}
		}, func(pid uint32) { noKernelState(t, pid) })
		for path, was := range inventory(t, "/etc") {
			if before[path] != was {
				t.Errorf("%s: %s, was %s", path, was, before[path])
			}
		}
	})
	t.Run("with procfs in it", func(t *testing.T) {
		dir := bundle(t, newID(t), "", "probe.wasm")
		proc := dir + "/rootfs/somewhere/else"
		if err := os.MkdirAll(proc, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := mount.All([]mount.Mount{{Type: "proc", Source: "proc"}}, proc); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = mount.UnmountAll(proc, unix.MNT_DETACH) })
		rawRun(t, dir, func(*specs.Spec) {}, func(pid uint32) { noKernelState(t, pid) })
	})
	t.Run("of a bundle, and a bundle's root, behind links", func(t *testing.T) {
		real := bundle(t, newID(t), "", "probe.wasm")
		links := t.TempDir()
		if err := os.Symlink(filepath.Dir(real), links+"/bundles"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("rootfs", real+"/linked"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(real+"/relative", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(real+"/relative/mark", []byte("marked"), 0o644); err != nil {
			t.Fatal(err)
		}
		tree, _ := kernelTree(t)
		rawRun(t, filepath.Join(links, "bundles", filepath.Base(real)), func(s *specs.Spec) {
			s.Root.Path = "linked"
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/host", Type: "bind", Source: tree, Options: []string{"rbind"}},
				specs.Mount{Destination: "/relative", Type: "bind", Source: "relative", Options: []string{"bind"}})
		}, func(pid uint32) {
			noKernelState(t, pid)
			if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/relative/mark", pid)); string(data) != "marked" {
				t.Errorf("a source relative to the bundle: %q, %v", data, err)
			}
		})
	})
}

func TestAContainerSeesWhatTheHostMountsLater(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	source := t.TempDir()
	mountOn := func(dir, fstype string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := mount.All([]mount.Mount{{Type: fstype, Source: fstype}}, dir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = mount.UnmountAll(dir, unix.MNT_DETACH) })
	}
	mountOn(source, "tmpfs")
	if err := unix.Mount("", source, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mountOn(source+"/early", "tmpfs")
	img := app(t, n, "probe.wasm")
	boxes := map[string]*box{}
	for _, propagation := range []string{"rprivate", "private", "unbindable", "slave", "rslave", "shared", "rshared"} {
		b := container(t, n, img, args("/app.wasm", "idle"), bind(source, "/v", propagation, "ro"), specOf(func(s *oci.Spec) {
			s.Linux.RootfsPropagation = "rshared" // as the kubelet has it
		}))
		b.mustCreate(t)
		b.mustStart(t)
		boxes[propagation] = b
	}
	sees := func(propagation, path string) bool {
		return mountsAt(t, boxes[propagation].task.Pid())["/v/"+path].fstype == "tmpfs"
	}
	following := []string{"slave", "rslave", "shared", "rshared"}
	all := func(path string, want bool) {
		t.Helper()
		for _, propagation := range following {
			ok := false
			for range 500 {
				if ok = sees(propagation, path) == want; ok {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if !ok {
				t.Fatalf("%s: %s is seen: %v; the host's mounts:\n%s\nthe container's:\n%s", propagation, path, !want, procFile(t, uint32(os.Getpid()), "mountinfo"), procFile(t, boxes[propagation].task.Pid(), "mountinfo"))
			}
		}
		for _, propagation := range []string{"rprivate", "private", "unbindable"} {
			if path != "early" && sees(propagation, path) {
				t.Errorf("%s: %s is seen", propagation, path)
			}
		}
	}
	all("early", true)
	// The kernel's file systems come first: when what follows is there, they would be.
	mountOn(source+"/procfs", "proc")
	mountOn(source+"/sysfs", "sysfs")
	mountOn(source+"/later", "tmpfs")
	all("later", true)
	if err := unix.Mount("", source+"/later", "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mountOn(source+"/later/below", "tmpfs")
	all("later/below", true)
	for propagation, b := range boxes {
		noKernelState(t, b.task.Pid())
		root := fmt.Sprintf("/proc/%d/root/v/", b.task.Pid())
		if names, err := os.ReadDir(root + "procfs"); err != nil || len(names) != 0 {
			t.Errorf("%s: %d files of procfs, %v", propagation, len(names), err)
		}
	}
	if m := mountsAt(t, boxes["rslave"].task.Pid())["/v/later"]; !strings.Contains(m.options, "nosuid,nodev") || m.fields != "" {
		t.Errorf("%+v", m)
	}
	if err := unix.Unmount(source+"/later/below", 0); err != nil {
		t.Error(err)
	}
	all("later/below", false)
	if err := unix.Unmount(source+"/later", 0); err != nil {
		t.Error(err)
	}
	all("later", false)
	// And the other way: what is mounted in the container stays there.
	inside := inMounts(t, source)
	for _, b := range boxes {
		b.remove()
	}
	if got := inMounts(t, source); got != inside {
		t.Errorf("%d mounts, were %d", got, inside)
	}
	leaves(t, n, before)
	if err := unix.Unmount(source+"/early", 0); err != nil {
		t.Errorf("still in use: %v", err)
	}
}

// inMounts is how many mounts the host has below dir.
func inMounts(t *testing.T, dir string) int {
	t.Helper()
	return strings.Count(procFile(t, uint32(os.Getpid()), "mountinfo"), " "+dir)
}

// A volume whose directories are swapped for links while the host mounts below them
// shows nothing but what was mounted.
func TestWhatIsMountedLaterCannotBeAimed(t *testing.T) {
	n := useNode(t)
	secret, untouched := canary(t)
	source := t.TempDir()
	if err := mount.All([]mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, source); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mount.UnmountAll(source, unix.MNT_DETACH) })
	if err := unix.Mount("", source, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(source+"/a/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, source+"/l"); err != nil {
		t.Fatal(err)
	}
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"), bind(source, "/v", "rslave"))
	b.mustCreate(t)
	b.mustStart(t)
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stopped:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, source+"/a", unix.AT_FDCWD, source+"/l", unix.RENAME_EXCHANGE)
			}
		}
	}()
	dir, err := unix.Open(source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	for range 200 {
		// A mount of the host's where the directory happens to be.
		for _, name := range []string{"a", "l"} {
			sub, err := unix.Openat2(dir, name+"/sub", &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
			if err != nil {
				continue
			}
			at := fmt.Sprintf("/proc/self/fd/%d", sub)
			if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=4k"); err == nil {
				for path, m := range mountsAt(t, b.task.Pid()) {
					if strings.HasPrefix(path, "/v/") && m.fstype != "tmpfs" {
						t.Errorf("%s is %+v", path, m)
					}
				}
			}
			unix.Close(sub)
		}
		for _, name := range []string{"a", "l"} {
			_ = unix.Unmount(source+"/"+name+"/sub", unix.MNT_DETACH)
		}
	}
	close(stopped)
	<-done
	for path, m := range mountsAt(t, b.task.Pid()) {
		if strings.HasPrefix(path, "/v/") && m.fstype != "tmpfs" {
			t.Errorf("%s is %+v", path, m)
		}
	}
	b.remove()
	untouched(t)
}
