package shim

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestARootFileSystemIsUnmountedWithAllThatIsOnIt(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TEST_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, for mounts: run `sudo make test`")
	}
	for _, tt := range []struct {
		name   string
		mounts []string // below rootfs
	}{
		{"nothing", nil},
		{"one", []string{"."}},
		{"one on the other", []string{".", "."}},
		{"one below", []string{".", "below", "below/deep"}},
		{"one below the lower of two", []string{".", "below", "."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rootfs := filepath.Join(t.TempDir(), "rootfs")
			if err := os.Mkdir(rootfs, 0o700); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for unix.Unmount(rootfs, unix.MNT_DETACH) == nil { // what the test left
				}
			})
			for _, m := range tt.mounts {
				path := filepath.Join(rootfs, m)
				if err := os.MkdirAll(path, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=64k"); err != nil {
					t.Fatal(err)
				}
			}
			if err := unmount(rootfs); err != nil {
				t.Error(err)
			}
			left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(rootfs))
			if err != nil || len(left) > 0 {
				t.Errorf("left: %d mounts, %v", len(left), err)
			}
		})
	}
	if err := unmount(filepath.Join(t.TempDir(), "gone")); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}

func TestARootFileSystemInUseIsNotUnmounted(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TEST_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, for mounts: run `sudo make test`")
	}
	rootfs := t.TempDir()
	if err := unix.Mount("tmpfs", rootfs, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(rootfs, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unmount(rootfs); err == nil {
		t.Error("no error")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unmount(rootfs); err != nil {
		t.Error(err)
	}
}
