package program

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newPayload(t *testing.T, program string) payload {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(program)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(program))
	return payload{b.String(), hex.EncodeToString(sum[:]) + "\n"}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("TEST_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: the program's file is root's")
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestTheProgramIsInstalledOnce(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "root", "bin")
	p := newPayload(t, "program")
	var first os.FileInfo
	for i := range 3 {
		path, err := p.install(dir)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil || string(data) != "program" {
			t.Fatalf("got %q, %v", data, err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != 0o555 {
			t.Errorf("mode %v", got)
		}
		if i == 0 {
			first = info
		} else if !os.SameFile(first, info) {
			t.Error("written once more")
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left in the directory: %q", got)
	}
}

func TestManyShimsInstallOneProgram(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "bin")
	p := newPayload(t, strings.Repeat("program", 1<<16))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := p.install(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if data, err := os.ReadFile(path); err != nil || len(data) != 7<<16 {
				t.Errorf("got %d bytes, %v", len(data), err)
			}
		})
	}
	wg.Wait()
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left in the directory: %q", got)
	}
}

func TestWhatIsNotTheProgramIsReplaced(t *testing.T) {
	needRoot(t)
	p := newPayload(t, "program")
	sum := strings.TrimSpace(p.sum)
	for _, tt := range []struct {
		name string
		make func(dir, path string) error
	}{
		{"a file that was not finished", func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "unfinished"), []byte("prog"), 0o700)
		}},
		{"an empty file", func(_, path string) error { return os.WriteFile(path, nil, 0o555) }},
		{"a file that another may write to", func(_, path string) error {
			if err := os.WriteFile(path, []byte("other"), 0o555); err != nil {
				return err
			}
			return os.Chmod(path, 0o777)
		}},
		{"a symbolic link", func(_, path string) error { return os.Symlink("/bin/true", path) }},
		{"a file of somebody else's", func(_, path string) error {
			if err := os.WriteFile(path, []byte("other"), 0o555); err != nil {
				return err
			}
			return os.Chown(path, 1000, 1000)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(dir, filepath.Join(dir, prefix+sum)); err != nil {
				t.Fatal(err)
			}
			path, err := p.install(dir)
			if err != nil {
				t.Fatal(err)
			}
			if !installed(path) {
				t.Error("it is not as it should be")
			}
			if data, err := os.ReadFile(path); err != nil || string(data) != "program" {
				t.Errorf("got %q, %v", data, err)
			}
			if got := names(t, dir); len(got) != 1 {
				t.Errorf("left in the directory: %q", got)
			}
		})
	}
}

func TestWhatCannotBeInstalledLeavesNothing(t *testing.T) {
	needRoot(t)
	good := newPayload(t, "program")
	for _, tt := range []struct {
		name    string
		payload payload
		dir     func(dir string) error
		want    string
	}{
		{"a payload of another digest", payload{newPayload(t, "other").gzip, good.sum}, nil, "digest"},
		{"a payload that is cut off", payload{good.gzip[:len(good.gzip)-9], good.sum}, nil, "EOF"},
		{"no payload", payload{"", good.sum}, nil, "EOF"},
		{"a directory that others may write to", good, func(dir string) error { return os.Chmod(dir, 0o777) }, "only root"},
		{"a directory of somebody else's", good, func(dir string) error { return os.Chown(dir, 1000, 1000) }, "only root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if tt.dir != nil {
				if err := tt.dir(dir); err != nil {
					t.Fatal(err)
				}
			}
			path, err := tt.payload.install(dir)
			if err == nil || path != "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, %v, want an error with %q", path, err, tt.want)
			}
			if got := names(t, dir); len(got) > 0 {
				t.Errorf("left in the directory: %q", got)
			}
		})
	}
	if path, err := (payload{}).install("/nonexistent/dir"); path != "" || err != nil {
		t.Errorf("without a program inside: got %q, %v", path, err)
	}
}

func TestProgramsOfOtherVersionsStayForAWhile(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for i := range kept + 3 {
		path, err := newPayload(t, fmt.Sprint("version ", i)).install(dir)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000*i), 0)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	for i, path := range paths {
		if _, err := os.Stat(path); (err == nil) != (i >= 2) {
			t.Errorf("version %d: %v", i, err)
		}
	}
}
