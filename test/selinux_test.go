package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// selinuxEnv says that the kernel enforces tools/cgroup2/selinux.cil, as on the
// machine that `make test-selinux` runs on.
const selinuxEnv = "TEST_SELINUX"

func TestSELinuxConfinesEveryProcessAndLabelsEveryMount(t *testing.T) {
	enforced, err := os.ReadFile("/sys/fs/selinux/enforce")
	if os.Getenv(selinuxEnv) == "" {
		t.Skip("needs a kernel with a policy for it: run `make test-selinux`")
	}
	if string(enforced) != "1" {
		t.Fatalf("%s is set, but SELinux does not enforce: %q, %v", selinuxEnv, enforced, err)
	}
	n := useNode(t)
	img := image(t, n, "selinux", catImage(t)...)
	dir := t.TempDir()
	for name, label := range map[string]string{"open": "u:object_r:object_t:s0", "secret": "u:object_r:secret_t:s0"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(path, "security.selinux", []byte(label), 0); err != nil {
			t.Fatal(err)
		}
	}
	const label, mountLabel = "u:r:container_t:s0:c1,c2", "u:object_r:container_t:s0:c1,c2"
	mounts := oci.Compose(bind(dir, "/host", "ro"), oci.WithMounts([]specs.Mount{{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs"}}))
	labelled := specOf(func(s *oci.Spec) { s.Process.SelinuxLabel, s.Linux.MountLabel = label, mountLabel })

	if b, status := run(t, n, img, args("/app.wasm", "/host/open", "/host/secret"), mounts); status != 0 || b.stdout.String() != "open\nsecret\n" {
		t.Fatalf("without a label: %d, %q", status, b.stdout)
	}
	b, status := run(t, n, img, args("/app.wasm", "/host/open", "+/scratch/x", "/scratch/x", "/host/secret"), mounts, labelled)
	if out := b.stdout.String(); status != 1 || !strings.HasPrefix(out, "open\nwritten\n") || !strings.HasSuffix(out, "Permission denied\n") {
		t.Errorf("%d, %q", status, out)
	}

	c := idleCat(t, n, mounts, labelled)
	own := c.idleExec(t, func(p *specs.Process) { p.SelinuxLabel = "u:r:container_t:s0:c1" })
	for pid, want := range map[uint32]string{
		c.task.Pid(): label, c.idleExec(t, nil).Pid(): label, own.Pid(): "u:r:container_t:s0:c1",
		c.idleExec(t, func(p *specs.Process) { p.SelinuxLabel = "" }).Pid(): label,
	} {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/attr/current", pid))
		if err != nil || len(threads) < 2 {
			t.Fatal(threads, err)
		}
		for _, file := range threads {
			if got, err := os.ReadFile(file); err != nil || strings.Trim(string(got), "\x00\n") != want {
				t.Errorf("%s: %q, %v, want %s", file, got, err, want)
			}
		}
		made := 0
		for _, mount := range strings.Split(procFile(t, pid, "mountinfo"), "\n") {
			if _, options, ok := strings.Cut(mount, " - tmpfs "); ok && !strings.Contains(mount, " /host ") {
				made++
				if !strings.Contains(options, `context="`+mountLabel+`"`) {
					t.Errorf("without the label: %s", mount)
				}
			}
		}
		if made == 0 {
			t.Error("no tmpfs")
		}
	}
	for name, opt := range map[string]oci.SpecOpts{
		"u:r:no_such_t:s0":        specOf(func(s *oci.Spec) { s.Process.SelinuxLabel = "u:r:no_such_t:s0" }),
		"u:object_r:object_t:s99": specOf(func(s *oci.Spec) { s.Process.SelinuxLabel = "u:object_r:object_t:s99" }),
	} {
		before := traces(t, n)
		b := container(t, n, img, args("/app.wasm", "/etc/motd"), opt)
		wantError(t, b.create(), errdefs.ErrInvalidArgument, "SELinux label "+name)
		b.remove()
		leaves(t, n, before)
	}
}
