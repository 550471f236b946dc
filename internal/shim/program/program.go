// Package program has the program that instance and compile processes run: one of
// 6 MB that starts in half the time of the shim's own, whose other packages they
// have no use for.
//
// It is inside the shim's where that was built with the tag "embedded", as `make
// build` does: see tools/build-shim. The kernel executes files, so it is put in one.
package program

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	prefix = "wazero-instance-"
	// kept are how many programs of other versions stay: a node may have several in
	// use at a time. A process that runs one whose file is gone is none the worse.
	kept = 4
	// writeSize is how much is written at a time, bytes: the page cache keeps what
	// is written together in larger pieces, of which a process starts faster.
	writeSize = 2 << 20
)

// Install returns the path of the program, in dir, where the first shim of a version
// puts it. Path is empty if this binary has no program inside.
//
// Dir is made if need be. What is in there will be executed as root: one that anybody
// but root may write to is an error.
func Install(dir string) (path string, err error) {
	return embedded.install(dir)
}

// A payload is a program as it is embedded.
type payload struct {
	gzip string
	sum  string // of the program: its SHA-256, hexadecimal; empty: there is none
}

func (p payload) install(dir string) (path string, err error) {
	sum := strings.TrimSpace(p.sum)
	if sum == "" {
		return "", nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("program of instances: %w", err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != 0 || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("%s: owned by uid %d with mode %#o: want a directory that only root may write to", dir, st.Uid, st.Mode)
	}
	path = filepath.Join(dir, prefix+sum)
	if installed(path) {
		return path, nil
	}
	// Of many shims that start at the same time, one writes it.
	lock, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", &os.PathError{Op: "lock", Path: dir, Err: err}
	}
	if installed(path) {
		return path, nil
	}
	// Its name comes last, once all of it is on disk: what has the name is whole,
	// whatever happens to the machine.
	unfinished := filepath.Join(dir, "unfinished")
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := p.write(unfinished, sum); err != nil {
		return "", errors.Join(err, os.Remove(unfinished))
	}
	if err := os.Rename(unfinished, path); err != nil {
		return "", err
	}
	prune(dir, path)
	return path, nil
}

// installed tells whether the program is there.
func installed(path string) bool {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return err == nil && st.Mode&^0o222 == unix.S_IFREG|0o555 && st.Mode&0o022 == 0 && st.Uid == 0 && st.Size > 0
}

func (p payload) write(path, sum string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, err := gzip.NewReader(strings.NewReader(p.gzip))
	if err != nil {
		return err
	}
	h := sha256.New()
	w := bufio.NewWriterSize(f, writeSize)
	if _, err := io.Copy(io.MultiWriter(w, h), r); err != nil { //nolint:gosec // it is our own
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("its digest is %s, not %s", got, sum)
	}
	if err := label(f); err != nil {
		return err
	}
	if err := f.Chmod(0o555); err != nil { // for whatever user an instance process is
		return err
	}
	return f.Sync()
}

// label gives the file the SELinux label of the program that this process runs: a
// policy lets instance processes be entered by that.
func label(f *os.File) error {
	const name = "security.selinux"
	value := make([]byte, 1024)
	n, err := unix.Getxattr("/proc/self/exe", name, value)
	if err != nil { // no SELinux
		return nil //nolint:nilerr // where there is, the exec would say so
	}
	if err := unix.Fsetxattr(int(f.Fd()), name, value[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return &os.PathError{Op: "label", Path: f.Name(), Err: err}
	}
	return nil
}

// prune removes programs beside that of path, but for the newest.
func prune(dir, path string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the next one will
	}
	var others []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), prefix) && e.Name() != filepath.Base(path) {
			others = append(others, info)
		}
	}
	slices.SortFunc(others, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for i, info := range others {
		if i >= kept {
			_ = os.Remove(filepath.Join(dir, info.Name())) // the next one will
		}
	}
}
