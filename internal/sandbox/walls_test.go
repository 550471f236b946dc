//go:build !nowalls

package sandbox

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Zero would be: what fails is closed as far as it was open, and the shim has a
// descriptor 0, or soon another thread does.
func TestARootFileSystemThatIsNotThereIsNoDescriptor(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for name, cfg := range map[string]Config{
		"a directory": {Rootfs: none},
		"a namespace": {Rootfs: "/", Namespaces: Namespaces{paths: map[uintptr]string{unix.CLONE_NEWNS: none}}},
	} {
		w := &Walls{cfg: cfg}
		if tree, err := w.cloneRootfs(nil); err == nil || tree != -1 {
			t.Errorf("%s: got %d, %v", name, tree, err)
		}
	}
}
