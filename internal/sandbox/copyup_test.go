package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestATreeIsCopiedWithoutWhatItLeadsTo(t *testing.T) {
	from, fromFD := tree(t)
	to, toFD := tree(t)
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	mkdir(t, from+"/a/b")
	if err := os.WriteFile(from+"/a/b/file", []byte("data"), 0o640); err != nil {
		t.Fatal(err)
	}
	symlink(t, outside, from+"/a/link")
	symlink(t, outside+"/secret", from+"/file-link")
	if err := unix.Mkfifo(from+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(from + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	if _, err := sparse.WriteAt([]byte("end"), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Truncate(2 << 30); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(fromFD, toFD); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/a", "/a/b", "/a/b/file", "/a/link", "/file-link", "/fifo", "/sparse"} {
		var was, is unix.Stat_t
		if err := unix.Lstat(from+path, &was); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lstat(to+path, &is); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if is.Mode != was.Mode || is.Uid != was.Uid || is.Gid != was.Gid || is.Mtim != was.Mtim || was.Mode&unix.S_IFMT == unix.S_IFREG && is.Size != was.Size {
			t.Errorf("%s: %+v, was %+v", path, is, was)
		}
	}
	if data, err := os.ReadFile(to + "/a/b/file"); string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(to+"/sparse", &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("a file of holes takes %d bytes, %v", st.Blocks*512, err)
	}
	if got, err := os.Readlink(to + "/a/link"); got != outside {
		t.Errorf("%q, %v", got, err)
	}
}

func TestATreeThatIsTooDeepIsNotCopied(t *testing.T) {
	from, fromFD := tree(t)
	_, toFD := tree(t)
	mkdir(t, from+strings.Repeat("/d", maxDepth+1))
	if err := copyTree(fromFD, toFD); err == nil || !strings.Contains(err.Error(), "below each other") {
		t.Errorf("got %v", err)
	}
}

// A directory of the tree that becomes a link, and back, while it is copied.
func TestATreeIsCopiedWithoutFollowingALinkPutThereMeanwhile(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	from, fromFD := tree(t)
	mkdir(t, from+"/a")
	symlink(t, outside, from+"/l")
	stop := exchange(t, from+"/a", from+"/l")
	defer stop()
	for range 300 {
		to, toFD := tree(t)
		if err := copyTree(fromFD, toFD); err != nil {
			continue // that it changed is an error
		}
		for _, name := range []string{"a", "l"} {
			if info, err := os.Lstat(filepath.Join(to, name)); err == nil && info.IsDir() {
				if _, err := os.Lstat(filepath.Join(to, name, "secret")); err == nil {
					t.Fatalf("%s has what the link leads to", name)
				}
			}
		}
	}
}

// exchange exchanges two names until it is stopped.
func exchange(t *testing.T, a, b string) (stop func()) {
	t.Helper()
	var stopped atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stopped.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() { stopped.Store(true); <-done }
}

// openat2(2) gives up on a path with ".." in it while anything is renamed.
func TestAPathThatKeepsChangingIsLookedUpAgain(t *testing.T) {
	root, fd := tree(t)
	mkdir(t, root+"/a/b")
	mkdir(t, root+"/c")
	symlink(t, strings.Repeat("../a/b/../", 10)+"../a/b", root+"/a/link")
	stop := exchange(t, root+"/c", root+"/a/b")
	defer stop()
	for range 3000 {
		got, err := openInRoot(fd, "/a/link", unix.O_PATH)
		if err != nil {
			t.Fatal(err)
		}
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", got))
		unix.Close(got)
		if err != nil || !strings.HasPrefix(path, root+"/") {
			t.Fatalf("%s, %v: outside %s", path, err, root)
		}
	}
}
