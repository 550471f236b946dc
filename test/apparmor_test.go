package test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// apparmorEnv says that there must be AppArmor with its parser, as on the machine
// that `make test-cgroup2` runs on.
const apparmorEnv = "TEST_APPARMOR"

func needAppArmor(t *testing.T) {
	t.Helper()
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err == nil && string(enabled) == "Y\n" {
		_, err = exec.LookPath("apparmor_parser")
	}
	switch {
	case string(enabled) == "Y\n" && err == nil:
	case os.Getenv(apparmorEnv) != "":
		t.Fatalf("%s is set, but there is no AppArmor: enabled %q, %v", apparmorEnv, enabled, err)
	default:
		t.Skip("no AppArmor on this host: run `make test-cgroup2`")
	}
}

// profile loads an AppArmor profile with the given rules, until the test is over.
func profile(t *testing.T, name, rules string) {
	t.Helper()
	parser(t, "--replace", name, rules)
	t.Cleanup(func() { parser(t, "--remove", name, rules) })
}

func parser(t *testing.T, action, name, rules string) {
	t.Helper()
	cmd := exec.Command("apparmor_parser", "--skip-cache", action)
	cmd.Stdin = strings.NewReader(fmt.Sprintf("profile %s flags=(attach_disconnected) {\n%s\n}\n", name, rules))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser %s %s: %v\n%s", action, name, err, out)
	}
}

func withProfile(name string) oci.SpecOpts {
	return specOf(func(s *oci.Spec) { s.Process.ApparmorProfile = name })
}

// wantConfined looks at every thread of a process, from the host.
func wantConfined(t *testing.T, pid uint32, want string) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/attr/apparmor/current", pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads of %d: %v, %v", pid, threads, err)
	}
	for _, file := range threads {
		if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
	}
}

// Two files that everybody may read, but for the profile below.
func secretImage(t *testing.T) []node.File {
	t.Helper()
	return []node.File{
		node.Regular("app.wasm", guest(t, "cat-c.wasm")), node.Regular("secret", []byte("of nobody\n")), node.Regular("open", []byte("of all\n")),
	}
}

const allButTheSecret = `
	file,
	network,
	signal (receive) peer=unconfined,
	deny /{,rootfs/}secret r,`

func TestAppArmorConfinesEveryProcessOfAContainer(t *testing.T) {
	needAppArmor(t)
	n := useNode(t)
	img := image(t, n, "apparmor", secretImage(t)...)
	profile(t, "wazero-test", allButTheSecret)
	profile(t, "wazero-other", strings.ReplaceAll(allButTheSecret, "secret", "open"))
	read := func(path string) oci.SpecOpts { return args("/app.wasm", path) }

	if b, status := run(t, n, img, read("/secret")); status != 0 || b.stdout.String() != "of nobody\n" {
		t.Fatalf("without a profile: %d, %q", status, b.stdout)
	}
	if b, status := run(t, n, img, read("/open"), withProfile("wazero-test")); status != 0 || b.stdout.String() != "of all\n" {
		t.Errorf("what is not denied: %d, %q", status, b.stdout)
	}
	if b, status := run(t, n, img, read("/secret"), withProfile("wazero-test")); status != 1 || !strings.Contains(b.stdout.String(), "Permission denied") {
		t.Errorf("what is denied: %d, %q", status, b.stdout)
	}

	b := container(t, n, img, args("/app.wasm", "idle"), withProfile("wazero-test"))
	b.mustCreate(t)
	wantConfined(t, b.task.Pid(), "wazero-test (enforce)")
	b.mustStart(t)
	for name, tt := range map[string]struct {
		change        func(*specs.Process)
		profile, deny string
	}{
		"an exec":                     {nil, "wazero-test (enforce)", "/secret"},
		"an exec that says none":      {func(p *specs.Process) { p.ApparmorProfile = "" }, "wazero-test (enforce)", "/secret"},
		"an exec with one of its own": {func(p *specs.Process) { p.ApparmorProfile = "wazero-other" }, "wazero-other (enforce)", "/open"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/secret", "/open"} {
				e, status := b.runExec(t, newID(t), tt.change, "/app.wasm", path)
				if denied := status == 1 && strings.Contains(e.stdout.String(), "Permission denied"); denied != (path == tt.deny) {
					t.Errorf("%s: %d, %q", path, status, e.stdout)
				}
			}
			e, err := b.exec(t, newID(t), tt.change, "/app.wasm", "idle")
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Start(b.ctx); err != nil {
				t.Fatal(err)
			}
			wantConfined(t, e.Pid(), tt.profile)
		})
	}
	t.Run("a signal reaches it", func(t *testing.T) {
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := b.exit(t); status != 128+15 {
			t.Errorf("exit status %d", status)
		}
	})
}

func TestTheDefaultProfileOfContainerdIsApplied(t *testing.T) {
	needAppArmor(t)
	const name = "cri-containerd.apparmor.d"
	n := useNode(t)
	img := image(t, n, "apparmor", secretImage(t)...)
	t.Cleanup(func() { parser(t, "--remove", name, "") })
	b := container(t, n, img, args("/app.wasm", "-", "+/scratch/new", "/scratch/new", "/open", "idle"),
		apparmor.WithDefaultProfile(name), oci.WithMounts([]specs.Mount{{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs"}}))
	b.mustCreate(t, true)
	b.mustStart(t)
	if _, err := io.WriteString(b.stdin, "a line\n"); err != nil {
		t.Fatal(err)
	}
	b.stdin.Close()
	b.closeStdin(t)
	eventually(t, "streams, a tmpfs and the image's files", func() bool {
		return strings.Contains(b.stdout.String(), "a line\nwritten\nof all\n")
	})
	wantConfined(t, b.task.Pid(), name+" (enforce)")
	if e, status := b.runExec(t, "e", nil, "/app.wasm", "/open"); status != 0 || e.stdout.String() != "of all\n" {
		t.Errorf("exec: %d, %q", status, e.stdout)
	}
	if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := b.exit(t); status != 128+9 {
		t.Errorf("exit status %d", status)
	}
}

// What docs/configuration.md says such a profile needs, and the file to read.
const justEnough = `
	network unix,
	signal (receive) peer=unconfined,
	/ r,
	/rootfs/{,app.wasm} r,
	/attached/{,**} rw,
	/dev/* rw,
	/open r,`

func TestAProfileMayAllowNextToNothing(t *testing.T) {
	needAppArmor(t)
	n := newNode(t, options()) // with a compile cache that has nothing yet
	img := image(t, n, "apparmor", secretImage(t)...)
	profile(t, "wazero-tight", justEnough)
	b, status := run(t, n, img, args("/app.wasm", "/open", "/secret"), withProfile("wazero-tight"))
	if status != 1 || !strings.HasPrefix(b.stdout.String(), "of all\n") || !strings.Contains(b.stdout.String(), "Permission denied") {
		t.Errorf("%d, %q %q", status, b.stdout, b.stderr)
	}
}

func TestACompileProcessHasTheProfileOfWhatItCompilesFor(t *testing.T) {
	needAppArmor(t)
	n := newNode(t, options())
	img := image(t, n, "apparmor", secretImage(t)...)
	profile(t, "wazero-test", allButTheSecret)
	stop, found := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(found)
		for {
			select {
			case <-stop:
				return
			default:
			}
			processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, p := range processes {
				if cmdline, _ := os.ReadFile(p); !strings.HasSuffix(string(cmdline), "\x00compile\x00") {
					continue
				}
				if current, err := os.ReadFile(filepath.Dir(p) + "/attr/apparmor/current"); err == nil {
					found <- strings.TrimSpace(string(current))
					return
				}
			}
		}
	}()
	_, status := run(t, n, img, args("/app.wasm", "/open"), withProfile("wazero-test"))
	close(stop)
	if got := <-found; status != 0 || got != "wazero-test (enforce)" {
		t.Errorf("%d; the compile process's profile: %q", status, got)
	}
}

func TestAnAppArmorProfileThatCannotBeHadIsNamed(t *testing.T) {
	need(t)
	n := useNode(t)
	img := image(t, n, "apparmor", secretImage(t)...)
	before := traces(t, n)
	b := container(t, n, img, args("/app.wasm"), withProfile("no-such-profile"))
	wantError(t, b.create(), errdefs.ErrInvalidArgument, "AppArmor profile no-such-profile")
	b.remove()
	leaves(t, n, before)

	if b, status := run(t, n, img, args("/app.wasm", "/open"), withProfile("unconfined")); status != 0 {
		t.Errorf("unconfined: %d, %q", status, b.stderr)
	}
	first := container(t, n, img, args("/app.wasm", "idle"))
	first.mustCreate(t)
	first.mustStart(t)
	_, err := first.exec(t, "e", func(p *specs.Process) { p.ApparmorProfile = "no-such-profile" }, "/app.wasm")
	wantError(t, err, errdefs.ErrInvalidArgument, "exec e", "AppArmor profile no-such-profile")
	if _, status := first.runExec(t, "f", nil, "/app.wasm", "/open"); status != 0 {
		t.Errorf("the next exec: %d", status)
	}
}
