package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

func TestALinuxProgramIsRunByRunc(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	rec := record(t, n)
	img := image(t, n, "linux", node.Program("hello", guest(t, "hello-static")), node.Program("busybox", guest(t, "busybox")))
	b, status := run(t, n, img, args("/hello"))
	if status != 0 || b.stdout.String() != "hello\n" {
		t.Errorf("%d, %q", status, b.stdout)
	}
	if got, want := names(rec.of(b.ID(), 4)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	t.Run("killed", func(t *testing.T) {
		b := container(t, n, img, args("/busybox", "sh", "-c", "trap 'exit 3' TERM; while :; do /busybox sleep 0.1; done"))
		b.mustCreate(t)
		b.mustStart(t)
		e, status := b.runExec(t, "e", nil, "/busybox", "echo", "from an exec")
		if status != 0 || e.stdout.String() != "from an exec\n" {
			t.Errorf("%d, %q", status, e.stdout)
		}
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.exit(t); got != 3 {
			t.Errorf("exit status %d", got)
		}
		b.delete(t)
	})
	t.Run("found behind a mount", func(t *testing.T) {
		b, status := run(t, n, app(t, n, "hello.wasm"), args("/v/hello-static"), bind(bin()+"/guests", "/v"))
		if status != 0 || b.stdout.String() != "hello\n" {
			t.Errorf("%d, %q", status, b.stdout)
		}
	})
	leaves(t, n, before)
}

func TestWithoutRuncALinuxProgramIsRefused(t *testing.T) {
	opts := options()
	opts.ShimEnv = []string{"PATH=/nowhere"}
	n := newNode(t, opts)
	before := traces(t, n)
	b := container(t, n, image(t, n, "linux", node.Program("hello", guest(t, "hello-static"))), args("/hello"))
	err := b.create()
	wantError(t, err, nil, "runc", "not found in $PATH")
	b.remove()
	leaves(t, n, before)
	if b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), oci.WithEnv(nil)); status != 0 || !strings.Contains(b.stdout.String(), "hello") {
		t.Errorf("a module: %d, %q", status, b.stdout)
	}
}

func TestContract24ALinuxProgramIsPutIntoASystemdScopeByItsPath(t *testing.T) {
	n := useNode(t)
	img := image(t, n, "linux", node.Program("busybox", guest(t, "busybox")))
	b := container(t, n, img, args("/busybox", "sleep", "1000"), oci.WithCgroup("wzlinux.slice:wz:"+filepath.Base(n.Dir)))
	err := b.create()
	if _, e := os.Stat("/run/systemd/system"); e != nil {
		wantError(t, err, nil, "systemd")
		b.remove()
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", b.task.Pid()))
	if want := "/wzlinux.slice/wz-" + filepath.Base(n.Dir) + ".scope\n"; err != nil || !strings.Contains(string(data), want) {
		t.Errorf("its cgroups are %q, %v, want %q", data, err, want)
	}
}
