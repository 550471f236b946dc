package test

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// inventory is all there is to be seen of a directory of the host: of each file
// its kind, mode, owner, times and content, and what is mounted there.
func inventory(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content := ""
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		all[path] = fmt.Sprintf("%o %d:%d %d %d %d %v %v %s", st.Mode, st.Uid, st.Gid, st.Size, st.Ino, st.Rdev, st.Mtim, st.Ctim, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(procFile(t, uint32(os.Getpid()), "mountinfo"), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) {
			all["mount "+f[0]] = line
		}
	}
	return all
}

// canary is a directory of the host that nobody is to touch. The function it returns
// tells whether somebody has.
func canary(t *testing.T) (dir string, check func(*testing.T)) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{"sub/deep", "etc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"file", "etc/hosts", "etc/passwd", "sub/deep/file"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("the host's "+f), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	before := inventory(t, dir)
	return dir, func(t *testing.T) {
		t.Helper()
		if after := inventory(t, dir); !maps.Equal(before, after) {
			t.Errorf("the host's files were\n%v\nand are\n%v", before, after)
		}
	}
}

func link(name, target string) node.File {
	return node.File{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
}

// A mountLine is a line of a process's mountinfo.
type mountLine struct{ root, options, fields, fstype, super string }

// mountsAt are the mounts of a process by their mount point: the topmost.
func mountsAt(t *testing.T, pid uint32) map[string]mountLine {
	t.Helper()
	all := map[string]mountLine{}
	for _, line := range strings.Split(strings.TrimSpace(procFile(t, pid, "mountinfo")), "\n") {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		all[l[4]] = mountLine{l[3], l[5], strings.Join(l[6:], " "), r[0], r[2]}
	}
	return all
}

func TestAMountCannotBeAimedByAnImage(t *testing.T) {
	n := useNode(t)
	dir, untouched := canary(t)
	source := t.TempDir()
	if err := os.WriteFile(source+"/mark", []byte("marked"), 0o644); err != nil {
		t.Fatal(err)
	}
	chain := func(length int) (files []node.File) {
		for i := range length {
			files = append(files, link(fmt.Sprintf("chain%d", i), fmt.Sprintf("chain%d", i+1)))
		}
		return append(files, link("data", "chain0"), link(fmt.Sprintf("chain%d", length), "etc"))
	}
	const nowhere = "-"
	for _, c := range []struct {
		name  string
		files []node.File
		// where /data leads to in the root file system: "" its root
		data string
		why  string // the mount cannot be made
	}{
		{"to the root", []node.File{link("data", "/")}, "", ""},
		{"to its parent", []node.File{link("data", "..")}, "", ""},
		{"upwards", []node.File{link("data", "../../..")}, "", ""},
		{"upwards and down again", []node.File{link("data", strings.Repeat("../", 60)+"etc")}, "/etc", ""},
		{"to a directory", []node.File{link("data", "etc")}, "/etc", ""},
		{"to the root of a process", []node.File{link("data", "/proc/self/root")}, nowhere, "leads nowhere"},
		{"to the directory of a process", []node.File{link("data", "/proc/self/cwd")}, nowhere, "leads nowhere"},
		{"to a descriptor", []node.File{link("data", "/proc/self/fd/7")}, nowhere, "leads nowhere"},
		{"to the host's file", []node.File{link("data", dir+"/etc/hosts")}, nowhere, "leads nowhere"},
		{"to the host's directory", []node.File{link("data", dir)}, nowhere, "leads nowhere"},
		{"to a process, with a /proc in the image", []node.File{link("data", "/proc/self/root"), link("proc/self/root", dir)}, nowhere, "leads nowhere"},
		{"to the host's directory, which is in the image", []node.File{link("data", dir), node.Regular(dir[1:]+"/x", nil)}, dir, ""},
		{"to nothing", []node.File{link("data", "none")}, nowhere, "leads nowhere"},
		{"to itself", []node.File{link("data", "data")}, nowhere, "symbolic links"},
		{"round and round", []node.File{link("data", "other"), link("other", "data")}, nowhere, "symbolic links"},
		{"along a chain", chain(30), "/etc", ""},
		{"along a chain that is too long", chain(45), nowhere, "symbolic links"},
		{"to a FIFO", []node.File{{Header: tar.Header{Name: "data", Typeflag: tar.TypeFifo, Mode: 0o666}}}, nowhere, "not a directory"},
		{"to a file", []node.File{node.Regular("data", []byte("x"))}, nowhere, "not a directory"},
		{"to a file, by a link", []node.File{link("data", "etc/file")}, nowhere, "not a directory"},
		{"a directory", []node.File{node.Regular("data/x", nil)}, "/data", ""},
		{"missing", nil, "/data", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := append([]node.File{node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("etc/file", nil)}, c.files...)
			img := image(t, n, "aimed-"+newID(t), files...)
			before := traces(t, n)
			kinds := map[string]func(dest string) oci.SpecOpts{
				"directory": func(dest string) oci.SpecOpts { return bind(source, dest) },
				"file":      func(dest string) oci.SpecOpts { return bind(source+"/mark", dest) },
				"cwd":       func(dest string) oci.SpecOpts { return oci.WithProcessCwd(dest) },
				"tmpfs": func(dest string) oci.SpecOpts {
					return oci.WithMounts([]specs.Mount{{Destination: dest, Type: "tmpfs", Options: []string{"tmpcopyup"}}})
				},
				"device": func(dest string) oci.SpecOpts {
					return specOf(func(s *oci.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: dest, Type: "c", Major: 1, Minor: 3}} })
				},
			}
			landed := func(b *box, kind, at string) {
				t.Helper()
				var err error
				ok := false
				inside := fmt.Sprintf("/proc/%d/root%s", b.task.Pid(), at)
				switch kind {
				case "directory", "file":
					var data []byte
					if kind == "directory" {
						inside += "/mark"
					}
					data, err = os.ReadFile(inside)
					ok = string(data) == "marked"
				case "tmpfs":
					ok = mountsAt(t, b.task.Pid())[at].fstype == "tmpfs"
				case "device", "cwd":
					var st unix.Stat_t
					err = unix.Lstat(inside+map[string]string{"cwd": "/."}[kind], &st)
					ok = kind == "device" && st.Rdev == unix.Mkdev(1, 3) || kind == "cwd" && st.Mode&unix.S_IFMT == unix.S_IFDIR
				}
				if !ok {
					t.Errorf("%s: not at %s: %v", kind, at, err)
				}
			}
			var below []oci.SpecOpts
			for kind, opt := range kinds {
				below = append(below, opt("/./data//deep/"+kind))
				// At the link itself some can be and others cannot.
				b := container(t, n, img, args("/app.wasm", "idle"), opt("/data"))
				err := b.create()
				switch fits := c.data != nowhere && c.data != "" && kind != "file" && kind != "device"; {
				case err == nil && c.data != nowhere:
					landed(b, kind, c.data)
				case err == nil: // a file on what is no directory
					if kind != "file" {
						t.Errorf("%s at /data: no error", kind)
					}
				case fits:
					t.Errorf("%s at /data: %v", kind, err)
				default:
					wantError(t, err, errdefs.ErrInvalidArgument, "/data")
				}
				b.remove()
				if c.data != nowhere {
					continue
				}
				b = container(t, n, img, args("/app.wasm", "idle"), opt("/data/deep/aimed"))
				wantError(t, b.create(), errdefs.ErrInvalidArgument, "/data/deep/aimed", c.why)
				b.remove()
			}
			if c.data != nowhere {
				b := container(t, n, img, append(below, args("/app.wasm", "idle"))...)
				b.mustCreate(t)
				for kind := range kinds {
					landed(b, kind, c.data+"/deep/"+kind)
				}
				b.remove()
			}
			leaves(t, n, before)
			untouched(t)
			for _, path := range []string{"/aimed", "/deep", "/data", "/none", dir + "/aimed", "/etc/aimed", "/etc/deep"} {
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the host has a %s: %v", path, err)
				}
			}
		})
	}
}

func TestWhatIsMaskedOrReadOnlyCannotBeAimedByAnImage(t *testing.T) {
	n := useNode(t)
	dir, untouched := canary(t)
	for name, c := range map[string]struct {
		target, want, at string
	}{
		"the root":                {"/", "the root itself", ""},
		"upwards":                 {"../../..", "the root itself", ""},
		"a process":               {"/proc/self/root/etc", "", ""},
		"the host's":              {dir, "", ""},
		"nothing":                 {"none", "", ""},
		"itself":                  {"data", "symbolic links", ""},
		"a directory":             {strings.Repeat("../", 20) + "etc", "", "/etc"},
		"a file":                  {"/etc/file", "", "/etc/file"},
		"below a file: not there": {"/etc/file/x", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			img := image(t, n, "masked-"+newID(t), node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("etc/file", nil), link("data", c.target))
			for what, opt := range map[string]oci.SpecOpts{
				"mask":      specOf(func(s *oci.Spec) { s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/data"}, nil }),
				"read-only": specOf(func(s *oci.Spec) { s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, []string{"/data"} }),
			} {
				before := traces(t, n)
				b := container(t, n, img, args("/app.wasm", "idle"), opt)
				err := b.create()
				if c.want != "" {
					wantError(t, err, errdefs.ErrInvalidArgument, what, "/data", c.want)
				} else if err != nil {
					t.Errorf("%s: %v", what, err)
				} else if m := mountsAt(t, b.task.Pid())[c.at]; c.at != "" && !strings.HasPrefix(m.options, "ro,") {
					t.Errorf("%s: %s is %+v", what, c.at, m)
				}
				b.remove()
				leaves(t, n, before)
			}
			untouched(t)
		})
	}
}

// Somebody who may write to a volume puts links in the place of directories while
// containers, that mount below those, are made: a guest, and one that can exchange
// names, as WASI cannot.
func TestAMountCannotBeAimedWhileItIsMade(t *testing.T) {
	n := useNode(t)
	exchange := func(t *testing.T, vol string) (stop func()) {
		stopped, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stopped:
					return
				default:
				}
				if err := unix.Renameat2(unix.AT_FDCWD, vol+"/a", unix.AT_FDCWD, vol+"/l", unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		return func() { close(stopped); <-done }
	}
	guestly := func(cmd ...string) func(*testing.T, string) func() {
		return func(t *testing.T, vol string) (stop func()) {
			img := app(t, n, "wasi-c.wasm")
			racer := container(t, n, img, args(append([]string{"/app.wasm"}, cmd...)...), bind(vol, "/vol"))
			racer.mustCreate(t)
			racer.mustStart(t)
			return func() {
				if err := os.WriteFile(vol+"/stop", nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if racer.exit(t); racer.stdout.String() != "swapped: often\n" {
					t.Errorf("%q", racer.stdout)
				}
				racer.remove()
			}
		}
	}
	for name, c := range map[string]struct {
		race  func(*testing.T, string) func()
		times int
		both  bool // some are made, and some are refused
	}{
		"names are exchanged":                   {exchange, 50, true},
		"directories become links of the image": {guestly("swap", "/", "vol/a", "vol/b", "vol/l", "vol/stop"), 12, false},
		"links are made of directories":         {guestly("flip", "/", "vol/a", "vol/b", strings.Repeat("../", 20), "vol/stop"), 12, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, untouched := canary(t)
			vol, source := t.TempDir(), t.TempDir()
			for _, d := range []string{"a/sub", "a/etc"} {
				if err := os.MkdirAll(filepath.Join(vol, d), 0o777); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(source+"/mark", []byte("marked"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(dir, vol+"/l"); err != nil {
				t.Fatal(err)
			}
			img := image(t, n, "racing", node.Regular("idle.wasm", guest(t, "probe.wasm")))
			before := traces(t, n)
			stop := c.race(t, vol)
			opts := []oci.SpecOpts{
				args("/idle.wasm", "idle"), bind(vol, "/vol"), bind(source, "/vol/a/sub/aimed"), bind(source+"/mark", "/vol/a/etc/hosts"),
				oci.WithMounts([]specs.Mount{{Destination: "/vol/a/sub/t/t", Type: "tmpfs", Options: []string{"tmpcopyup"}}}),
				oci.WithProcessCwd("/vol/a/sub/cwd"),
				specOf(func(s *oci.Spec) {
					mode := os.FileMode(0o777)
					s.Linux.Devices = []specs.LinuxDevice{{Path: "/vol/a/file", Type: "c", Major: 1, Minor: 3, FileMode: &mode}}
					s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/vol/a/etc"}, []string{"/vol/a/sub"}
				}),
			}
			const makers = 4
			var made, refused int
			reasons := map[string]int{}
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range makers {
				wg.Go(func() {
					for range c.times {
						b := container(t, n, img, opts...)
						err := b.create()
						mu.Lock()
						if err == nil {
							made++
						} else {
							refused++
							if !strings.Contains(err.Error(), "/vol/a") {
								t.Errorf("%v: want the path", err)
							}
							reasons[err.Error()]++
						}
						mu.Unlock()
						b.remove()
					}
				})
			}
			wg.Wait()
			t.Logf("%d made, %d refused: %v", made, refused, reasons)
			if c.both && (made == 0 || refused == 0) {
				t.Error("no race")
			}
			stop()
			leaves(t, n, before)
			untouched(t)
			for _, path := range []string{"/sub", "/a", "/vol", "/etc/aimed"} {
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the host has a %s: %v", path, err)
				}
			}
		})
	}
}

func TestTheDestinationOfAMountIsAPathOfTheContainer(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "probe.wasm")
	source := t.TempDir()
	for dest, want := range map[string]string{
		"": "absolute", "x": "absolute", "./x": "absolute", "../x": "absolute",
		"/": "the root itself", "//": "the root itself", "/./": "the root itself", "/a/..": "the root itself", "/../..": "the root itself",
		"/" + strings.Repeat("a", 256): "name too long", strings.Repeat("/aaaaaaa", 600): "name too long", "/app.wasm": "not a directory", "/app.wasm/x": "not a directory",
		"/a/../b": "", "//c//d/": "", "/../../../e": "", "/none/../f": "",
	} {
		t.Run("at "+strings.ReplaceAll(fmt.Sprintf("%.20s", dest), "/", "|"), func(t *testing.T) {
			before := traces(t, n)
			b := container(t, n, img, args("/app.wasm", "idle"), bind(source, dest))
			err := b.create()
			if want != "" {
				wantError(t, err, errdefs.ErrInvalidArgument, want)
			} else if err != nil {
				t.Error(err)
			} else if m := mountsAt(t, b.task.Pid()); m[filepath.Clean("/"+dest)].fstype == "" {
				t.Errorf("mounts %v", m)
			}
			b.remove()
			leaves(t, n, before)
		})
	}
}

// flags are the options of a mount that its specification decides; those that
// every mount of a wasm container has are not.
func flags(m mountLine) string {
	return strings.Join(slices.DeleteFunc(strings.Split(m.options, ","), func(o string) bool { return o == "nosuid" || o == "nodev" }), ",")
}

func TestMountOptionsMeanWhatTheyMeanToRunc(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	tree := t.TempDir()
	// Sources with options of their own, each with a file system below.
	sources := map[string]string{}
	for name, options := range map[string][]string{"plain": nil, "strict": {"noexec", "noatime", "nodiratime"}} {
		dir := filepath.Join(tree, name)
		for _, d := range []string{dir, dir + "/below"} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := mount.All([]mount.Mount{{Type: "tmpfs", Source: name, Options: options}}, d); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = mount.UnmountAll(d, unix.MNT_DETACH) })
		}
		sources[name] = dir
	}
	lower := t.TempDir()
	var layers []string
	for i := range 5 {
		layers = append(layers, fmt.Sprintf("%s/a-layer-with-a-long-name-%d", lower, i))
		if err := os.Mkdir(layers[i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var mounts []specs.Mount
	add := func(m specs.Mount, options string) {
		m.Destination = fmt.Sprintf("/m/%d", len(mounts))
		m.Options = strings.Split(options, ",")
		mounts = append(mounts, m)
	}
	for _, source := range sources {
		for _, o := range []string{
			"bind", "rbind", "bind,rw", "bind,ro", "rbind,ro", "rbind,rro", "rbind,rro,rw", "bind,noexec", "rbind,rnoexec", "bind,exec", "bind,nodev,nosuid,noexec,ro",
			"bind,noatime", "bind,strictatime", "bind,relatime,ro", "bind,nodiratime", "rbind,rnoatime", "rbind,rstrictatime", "rbind,rrelatime", "rbind,rnodiratime,rdiratime",
			"bind,nosymfollow", "rbind,rnosymfollow", "rbind,rsymfollow", "bind,noatime,atime,ro", "bind,sync", "bind,silent,loud", "bind,lazytime,ro", "bind,private", "rbind,rprivate,ro", "bind,ro,rw", "bind,rw,ro",
			"rbind,unbindable",
		} {
			top := slices.ContainsFunc(strings.Split(o, ",")[1:], func(o string) bool { return !strings.HasPrefix(o, "r") || len(o) == 2 || o == "relatime" })
			if source == sources["strict"] && top {
				continue // what the source has and is not named, runc clears: RATIONALE.md
			}
			add(specs.Mount{Type: "bind", Source: source}, o)
		}
	}
	add(specs.Mount{Type: "none", Source: sources["plain"]}, "bind,ro")
	add(specs.Mount{Source: sources["plain"]}, "rbind,noexec")
	for _, o := range []string{
		"size=64k", "size=1m,mode=0700", "mode=1777,uid=7,gid=8", "nr_inodes=11,size=4m", "ro", "ro,size=64k", "noexec,noatime", "strictatime,noexec", "relatime", "nosymfollow", "sync", "dirsync", "lazytime", "mand", "sync,async",
		"silent,size=8k", "iversion", "nodiratime", "noatime,norelatime", "strictatime,nostrictatime", "nr_blocks=5",
	} {
		add(specs.Mount{Type: "tmpfs", Source: "tmpfs"}, o)
	}
	add(specs.Mount{Type: "ramfs", Source: "ramfs"}, "mode=0711,ro,noexec")
	add(specs.Mount{Type: "overlay", Source: "overlay"}, "lowerdir="+lower+":"+sources["plain"])
	add(specs.Mount{Type: "overlay", Source: "overlay"}, "lowerdir="+strings.Join(layers, ":")+",ro") // longer than an option of fsconfig may be

	look := func(entry ...string) (map[string]mountLine, map[string]string) {
		b := container(t, n, img, args(entry...), oci.WithMounts(mounts))
		b.mustCreate(t)
		modes := map[string]string{}
		for _, m := range mounts {
			var st unix.Stat_t
			if err := unix.Stat(fmt.Sprintf("/proc/%d/root%s", b.task.Pid(), m.Destination), &st); err != nil {
				t.Error(err)
			}
			modes[m.Destination] = fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		}
		return mountsAt(t, b.task.Pid()), modes
	}
	want, wantModes := look("/busybox", "sleep", "1000")
	got, gotModes := look("/app.wasm", "idle")
	for _, m := range mounts {
		for _, path := range []string{m.Destination, m.Destination + "/below"} {
			w, g := want[path], got[path]
			if flags(g) != flags(w) || g.fstype != w.fstype || g.root != w.root || g.super != w.super {
				t.Errorf("%s %v, at %s:\n got %+v\nwant %+v", m.Type, m.Options, path, g, w)
			}
			if g.fstype == "" {
				continue
			}
			if !strings.Contains(g.options, "nosuid") || g.fstype != "tmpfs" && !strings.Contains(g.options, "nodev") {
				t.Errorf("%s %v, at %s: %+v", m.Type, m.Options, path, g)
			}
		}
		if g, w := gotModes[m.Destination], wantModes[m.Destination]; g != w {
			t.Errorf("%s %v: mode and owner %s, want %s", m.Type, m.Options, g, w)
		}
	}
}

func TestOptionsThatBelongToNoMountAreRefused(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "probe.wasm")
	for _, m := range []specs.Mount{
		{Type: "bind", Source: "/tmp", Options: []string{"bind", "size=1m"}},
		{Type: "bind", Source: "/tmp", Options: []string{"rbind", "mode=0700"}},
		{Type: "bind", Source: "/tmp", Options: []string{"rbind", "remount"}},
		{Type: "bind", Source: "/tmp", Options: []string{"bind", "tmpcopyup"}},
		{Type: "bind", Source: "/tmp", Options: []string{"context=system_u:object_r:container_file_t:s0"}},
		{Type: "tmpfs", Options: []string{"remount"}},
		{Type: "tmpfs", Options: []string{"size=lots"}},
		{Type: "tmpfs", Options: []string{"sideways"}},
		{Type: "tmpfs", Options: []string{"rsideways"}},
		{Type: "tmpfs", Options: []string{"context=system_u:object_r:container_file_t:s0"}}, // no kernel here runs SELinux
		{Type: "overlay", Options: []string{"lowerdir=/no/such"}},
		{Type: "overlay", Options: []string{"lowerdir=/tmp:/sys"}},
		{Type: "ramfs", Options: []string{"tmpcopyup"}},
		{Type: "debugfs"},
		{Type: "tracefs"},
		{Type: "securityfs"},
		{Type: "bpf"},
		{Type: "devtmpfs"},
		{Type: "binfmt_misc"},
		{Type: "none"},
		{Type: ""},
		{Type: "nofs"},
	} {
		t.Run("type "+m.Type+" "+strings.ReplaceAll(strings.Join(m.Options, ","), "/", "|"), func(t *testing.T) {
			before := traces(t, n)
			m.Destination = "/m"
			want := m.Type
			if len(m.Options) > 0 {
				want = m.Options[len(m.Options)-1]
			}
			b := container(t, n, img, args("/app.wasm"), oci.WithMounts([]specs.Mount{m}))
			wantError(t, b.create(), errdefs.ErrInvalidArgument, "mount at /m", want)
			b.remove()
			leaves(t, n, before)
		})
	}
}

func TestMountsGoOverEachOtherInOrder(t *testing.T) {
	n := useNode(t)
	one, two := t.TempDir(), t.TempDir()
	for dir, text := range map[string]string{one: "one", two: "two"} {
		if err := os.WriteFile(dir+"/f", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img := image(t, n, "order", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("file", []byte("image")))
	b, status := run(t, n, img, args("/app.wasm", "cat", "/a/f", "cat", "/a/x/f", "cat", "/file", "cat", "/t/a/f", "ls", "/gone"),
		bind(one, "/a"), bind(two, "/a"), oci.WithMounts([]specs.Mount{{Destination: "/a/x", Type: "tmpfs"}}), bind(one, "/a/x"),
		bind(two+"/f", "/file"), bind(one+"/f", "/file"),
		oci.WithMounts([]specs.Mount{{Destination: "/t", Type: "tmpfs", Options: []string{"ro"}}}), bind(two, "/t/a"),
		bind(one, "/gone/below"), oci.WithMounts([]specs.Mount{{Destination: "/gone", Type: "tmpfs"}}))
	if got, want := b.stdout.String(), "twooneonetwo"; status != 0 || got != want {
		t.Errorf("%d, %q, want %q", status, got, want)
	}
}

func TestATmpfsTakesModeAndContentOfWhatItCovers(t *testing.T) {
	n := useNode(t)
	dir := node.File{Header: tar.Header{Name: "var/", Typeflag: tar.TypeDir, Mode: 0o1751, Uid: 5, Gid: 6}}
	secret := node.Regular("var/deep/secret", []byte("kept"))
	secret.Mode, secret.Uid, secret.Gid = 0o640, 7, 8
	img := image(t, n, "copyup", node.Regular("app.wasm", guest(t, "probe.wasm")), dir, secret, link("var/link", "/etc/passwd"), link("var/up", "../../../../../etc"),
		node.File{Header: tar.Header{Name: "var/disk", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 254}},
		node.File{Header: tar.Header{Name: "var/fifo", Typeflag: tar.TypeFifo, Mode: 0o604}})
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/mounted", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b := container(t, n, img, args("/app.wasm", "idle"), bind(outside, "/var/volume"),
		oci.WithMounts([]specs.Mount{
			{Destination: "/var", Type: "tmpfs", Options: []string{"tmpcopyup", "size=1m", "ro"}},
			{Destination: "/var/plain", Type: "tmpfs"},
		}))
	b.mustCreate(t)
	root := fmt.Sprintf("/proc/%d/root", b.task.Pid())
	for path, want := range map[string]string{
		"/var": "41751 0:0", "/var/deep": "40755 0:0", "/var/deep/secret": "100640 7:8", "/var/link": "120777 0:0", "/var/fifo": "10604 0:0", "/var/plain": "41777 0:0",
	} {
		var st unix.Stat_t
		err := unix.Lstat(root+path, &st)
		if got := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", path, got, err, want)
		}
	}
	for path, want := range map[string]string{"/var/link": "/etc/passwd", "/var/up": "../../../../../etc"} {
		if got, err := os.Readlink(root + path); got != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if data, err := os.ReadFile(root + "/var/deep/secret"); string(data) != "kept" {
		t.Errorf("%q, %v", data, err)
	}
	for _, path := range []string{"/var/disk", "/var/volume/mounted"} {
		if _, err := os.Lstat(root + path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has been copied: %v", path, err)
		}
	}
	if err := os.WriteFile(root+"/var/new", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a read-only tmpfs: %v", err)
	}
	before := traces(t, n)
	big := image(t, n, "copyup-big", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("var/big", make([]byte, 1<<20)))
	full := container(t, n, big, args("/app.wasm"), oci.WithMounts([]specs.Mount{{Destination: "/var", Type: "tmpfs", Options: []string{"tmpcopyup", "size=64k"}}}))
	wantError(t, full.create(), errdefs.ErrInvalidArgument, "/var", "tmpcopyup", "big", "no space left")
	full.remove()
	leaves(t, n, before)
}

// hostDevices is a directory of the host that has a device in it.
func withDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mknod(dir+"/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/zero", 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestADeviceIsClosedUnlessItIsAskedFor(t *testing.T) {
	n := useNode(t)
	zero := node.File{Header: tar.Header{Name: "zero", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 5}}
	img := image(t, n, "devices", node.Regular("app.wasm", guest(t, "wasi-c.wasm")), zero)
	dir := withDisk(t)
	// No rule of the cgroup stands in the way.
	free := specOf(func(s *oci.Spec) { s.Linux.Resources.Devices = nil })
	opens := func(path string, opts ...oci.SpecOpts) bool {
		t.Helper()
		b, _ := run(t, n, img, append([]oci.SpecOpts{args("/app.wasm", "open", "f", "/", path[1:], "wr", "put", "f", "x"), free}, opts...)...)
		return strings.HasSuffix(b.stdout.String(), "put: 0\n")
	}
	volume := bind(dir, "/volume")
	noDev := specOf(func(s *oci.Spec) {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev" })
	})
	asked := specOf(func(s *oci.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/asked/zero", Type: "c", Major: 1, Minor: 5}}
	})
	over := specOf(func(s *oci.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/zero", Type: "c", Major: 1, Minor: 5}}
	})
	for _, c := range []struct {
		name, path string
		opts       []oci.SpecOpts
		want       bool
	}{
		{"of the image", "/zero", nil, false},
		{"of a volume", "/volume/zero", []oci.SpecOpts{volume}, false},
		{"of a volume, which is to have devices", "/volume/zero", []oci.SpecOpts{bind(dir, "/volume", "dev")}, true},
		{"bound itself", "/bound", []oci.SpecOpts{bind(dir+"/zero", "/bound")}, true},
		{"bound itself, with nodev", "/bound", []oci.SpecOpts{bind(dir+"/zero", "/bound", "nodev")}, false},
		{"of the specification", "/asked/zero", []oci.SpecOpts{asked}, true},
		{"of the specification, on a read-only root", "/asked/zero", []oci.SpecOpts{asked, oci.WithRootFSReadonly()}, true},
		{"of the specification, over the image's own", "/zero", []oci.SpecOpts{over}, true},
		{"of every /dev", "/dev/zero", nil, true},
		{"of every /dev, that is no tmpfs", "/dev/zero", []oci.SpecOpts{noDev}, true},
		{"of the host's /dev", "/hostdev/zero", []oci.SpecOpts{bind("/dev", "/hostdev")}, false},
		{"of the host's /dev, as /dev", "/dev/zero", []oci.SpecOpts{noDev, bind("/dev", "/dev")}, false},
	} {
		if got := opens(c.path, c.opts...); got != c.want {
			t.Errorf("%s: could be opened: %v, want %v", c.name, got, c.want)
		}
	}
	if _, err := os.Stat("/dev/null"); err != nil {
		t.Error(err)
	}
}

func TestADevAmongDirectoriesOfTheImage(t *testing.T) {
	n := useNode(t)
	noDev := specOf(func(s *oci.Spec) {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev" })
	})
	dir, untouched := canary(t)
	for name, c := range map[string]struct {
		files []node.File
		at    string
	}{
		"missing":                   {nil, "/dev"},
		"a link to the host's":      {[]node.File{link("dev", dir+"/dev")}, ""},
		"a link":                    {[]node.File{link("dev", "../../etc"), node.Regular("etc/x", nil)}, "/etc"},
		"a file in place of a node": {[]node.File{node.Regular("dev/zero", []byte("zero"))}, "/dev"},
		"a link in place of a node": {[]node.File{link("dev/null", dir+"/file")}, "/dev"},
	} {
		t.Run(name, func(t *testing.T) {
			before := traces(t, n)
			img := image(t, n, "nodev-"+newID(t), append(c.files, node.Regular("app.wasm", guest(t, "probe.wasm")))...)
			b := container(t, n, img, args("/app.wasm", "idle"), noDev)
			err := b.create()
			if c.at == "" {
				wantError(t, err, errdefs.ErrInvalidArgument, "/dev", "leads nowhere")
			} else if err != nil {
				t.Error(err)
			} else {
				var st unix.Stat_t
				if err := unix.Lstat(fmt.Sprintf("/proc/%d/root%s/urandom", b.task.Pid(), c.at), &st); err != nil || st.Rdev != unix.Mkdev(1, 9) || st.Mode != unix.S_IFCHR|0o666 {
					t.Errorf("%+v, %v", st, err)
				}
			}
			b.remove()
			leaves(t, n, before)
			untouched(t)
		})
	}
}

func TestDevicesOfEveryKindInAUserNamespaceToo(t *testing.T) {
	n := useNode(t)
	img := usersImage(t, n)
	mode, uid, gid := os.FileMode(0o640), uint32(5), uint32(6)
	devices := specOf(func(s *oci.Spec) {
		for _, dir := range []string{"/dev", "/elsewhere", "/volume"} {
			for path, d := range map[string]specs.LinuxDevice{
				"/block": {Type: "b", Major: 7, Minor: 250}, "/char": {Type: "u", Major: 1, Minor: 5}, "/fifo": {Type: "p"},
			} {
				d.Path, d.FileMode, d.UID, d.GID = dir+path, &mode, &uid, &gid
				s.Linux.Devices = append(s.Linux.Devices, d)
			}
		}
	})
	for name, c := range map[string]struct {
		first uint32
		make  func(volume string) *box
	}{
		"the host's": {0, func(volume string) *box {
			return container(t, n, img, args("/app.wasm", "idle"), devices, bind(volume, "/volume"))
		}},
		"a new one": {mappedTo, func(volume string) *box {
			return userContainer(t, n, img, roots(img)["id-mapped"], args("/app.wasm", "idle"), devices, bind(volume, "/volume"), oci.WithUserNamespace(idMappings, idMappings),
				oci.WithMounts([]specs.Mount{{Destination: "/t", Type: "tmpfs", Options: []string{"uid=3", "gid=4", "mode=0700"}}}))
		}},
	} {
		volume := t.TempDir()
		if err := os.Chmod(volume, 0o777); err != nil {
			t.Fatal(err)
		}
		b := c.make(volume)
		b.mustCreate(t)
		root := fmt.Sprintf("/proc/%d/root", b.task.Pid())
		for _, dir := range []string{"/dev", "/elsewhere", "/volume"} {
			for path, want := range map[string]unix.Stat_t{
				"/block": {Mode: unix.S_IFBLK | 0o640, Rdev: unix.Mkdev(7, 250)}, "/char": {Mode: unix.S_IFCHR | 0o640, Rdev: unix.Mkdev(1, 5)}, "/fifo": {Mode: unix.S_IFIFO | 0o640},
			} {
				var st unix.Stat_t
				err := unix.Lstat(root+dir+path, &st)
				if err != nil || st.Mode != want.Mode || st.Rdev != want.Rdev || st.Uid != c.first+5 || st.Gid != c.first+6 {
					t.Errorf("%s: %s%s: %+v, %v", name, dir, path, st, err)
				}
			}
		}
		if c.first > 0 {
			var st unix.Stat_t
			if err := unix.Stat(root+"/t", &st); err != nil || st.Uid != c.first+3 || st.Gid != c.first+4 {
				t.Errorf("%s: the tmpfs of a user is %d:%d's, %v", name, st.Uid, st.Gid, err)
			}
		}
		b.remove()
		for _, name := range []string{"block", "char", "fifo"} {
			if info, err := os.Lstat(filepath.Join(volume, name)); err != nil || !info.Mode().IsRegular() {
				t.Errorf("the volume's %s is %v, %v: want a file to mount on", name, info, err)
			}
		}
	}
}
