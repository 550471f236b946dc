package module

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Prefixes of entries on their way in and out.
const (
	newPrefix = "new-"
	oldPrefix = "old-"
)

// place makes the entry of what is in the directory compiled, and opens it. It appears
// whole or not at all.
func (c *Cache) place(ctx context.Context, dir *os.File, entry string, compiled *os.File) (*Artifact, error) {
	a, err := c.tryPlace(ctx, dir, entry, compiled)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		// Old entries are of less use than this one.
		if size, e := sizeOf(compiled); e == nil && c.makeRoom(ctx, dir, 2*size) == nil {
			a, err = c.tryPlace(ctx, dir, entry, compiled)
		}
	}
	var left *leftError
	switch {
	case err == nil:
		return a, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.As(err, &left): // no good for anybody
		return nil, err
	}
	return nil, unusableError{fmt.Errorf("compile cache: %w", err)}
}

func (c *Cache) tryPlace(ctx context.Context, dir *os.File, entry string, compiled *os.File) (_ *Artifact, err error) {
	tmp, held, err := c.makeNew(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	path := filepath.Join(c.dir, tmp)
	defer func() {
		if err != nil {
			os.RemoveAll(path)
		}
	}()
	sums, err := copyOut(compiled, filepath.Join(path, codeName))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(path, sumsName), encodeSums(entry, sums), 0o444); err != nil {
		return nil, err
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := moveOut(dir, entry) // what was broken
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.Rename(path, filepath.Join(c.dir, entry)); err != nil {
		return nil, err
	}
	path = filepath.Join(c.dir, entry)
	if old != "" {
		remove(dir, old)
	}
	a, err := find(dir, entry)
	if a == nil {
		return nil, fmt.Errorf("read what was written: %w", err)
	}
	a.Hit = false
	c.evictLocked(ctx, dir)
	return a, nil
}

// makeNew makes the directory of an entry that is to be, and removes what others have left
// that were killed. It is that of a live process as long as held is open.
func (c *Cache) makeNew(ctx context.Context, dir *os.File) (name string, held *os.File, err error) {
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	sweepLocked(dir)
	path, err := os.MkdirTemp(c.dir, newPrefix)
	if err != nil {
		return "", nil, err
	}
	held, err = os.Open(path)
	if err == nil {
		err = tryLock(held)
	}
	if err != nil {
		held.Close()
		os.Remove(path)
		return "", nil, err
	}
	return filepath.Base(path), held, nil
}

// moveOut gives what has the name of an entry, whatever it is, another one. The caller
// has locked the directory.
func moveOut(dir *os.File, entry string) (old string, err error) {
	old = fmt.Sprintf("%s%016x", oldPrefix, rand.Uint64()) //nolint:gosec // only to be another one
	if err := os.Rename(filepath.Join(dir.Name(), entry), filepath.Join(dir.Name(), old)); err != nil {
		return "", err
	}
	return old, nil
}

// remove removes an entry that has been moved out, unless somebody reads it.
func remove(dir *os.File, old string) {
	if f, err := openIn(dir, old+"/"+sumsName, unix.O_RDONLY); err == nil {
		defer f.Close()
		if tryLock(f) != nil {
			return // to be found later
		}
		// First: who has opened it and not locked it yet sees that it is gone.
		os.Remove(filepath.Join(dir.Name(), old, sumsName))
	}
	os.RemoveAll(filepath.Join(dir.Name(), old)) // or else by who comes next
}

// sweepLocked removes what was left by processes that are gone. The caller has locked
// the directory.
func sweepLocked(dir *os.File) {
	entries, err := os.ReadDir(dir.Name())
	if err != nil {
		return // whatever it is, it is in the way of more than this
	}
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(dir.Name(), name)
		switch {
		case strings.HasPrefix(name, oldPrefix):
			remove(dir, name)
		case strings.HasPrefix(name, newPrefix), strings.HasSuffix(name, lockSuffix):
			f, err := openIn(dir, name, unix.O_RDONLY)
			if err != nil {
				os.Remove(path) // not of ours
				continue
			}
			if tryLock(f) == nil && isNamed(f, path) {
				os.RemoveAll(path)
			}
			f.Close()
		}
	}
}

// A leftError says that a compiler has left what no compiler of ours would.
type leftError struct {
	path   string
	reason string
}

func (e *leftError) Error() string { return fmt.Sprintf("the compiler left %q: %s", e.path, e.reason) }

// sizeOf is the length of the files in a directory, bytes.
func sizeOf(dir *os.File) (size int64, err error) {
	err = walk(dir, func(_ string, d fs.DirEntry) error {
		info, err := d.Info()
		if err == nil && !d.IsDir() {
			size += info.Size()
		}
		return err
	})
	return size, err
}

// walk calls f for what is below dir.
func walk(dir *os.File, f func(path string, d fs.DirEntry) error) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		return f(path, d)
	})
}

// copyOut copies what a compiler has left in the directory from to a new one, to: root's,
// readable by any user that gets to it. Anything but plain directories and files with one
// name is refused: whoever controlled the compiler could aim it elsewhere.
func copyOut(from *os.File, to string) (sums []sum, err error) {
	if err := os.Mkdir(to, 0o700); err != nil {
		return nil, err
	}
	dirs, buf := []string{"."}, make([]byte, 128<<10)
	err = walk(from, func(path string, d fs.DirEntry) error {
		refused := func(reason string) error { return &leftError{path, reason} }
		info, err := d.Info()
		if err != nil {
			return err
		}
		if strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return refused("not a name for a file")
		}
		if len(dirs)+len(sums) > maxFiles {
			return refused("one file too many")
		}
		if d.IsDir() {
			dirs = append(dirs, path)
			return os.Mkdir(filepath.Join(to, path), 0o700)
		}
		if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink != 1 {
			return refused("not a plain file")
		}
		s, err := copyFile(from, path, filepath.Join(to, path), buf)
		sums = append(sums, s)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(sums) == 0 {
		return nil, &leftError{".", "nothing in it"}
	}
	for _, d := range dirs {
		if err := os.Chmod(filepath.Join(to, d), 0o555); err != nil {
			return nil, err
		}
	}
	return sums, nil
}

// copyFile copies a file. It is not written to the disk at once: what is not, when the
// machine goes down, will be found to be broken.
func copyFile(from *os.File, path, to string, buf []byte) (s sum, err error) {
	src, err := openIn(from, path, unix.O_RDONLY)
	if err != nil {
		return s, err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return s, err
	}
	s.path = path
	s.crc, err = copySum(dst, src, buf)
	if err == nil {
		err = dst.Chmod(0o444) // whatever the umask
	}
	if info, e := dst.Stat(); e == nil {
		s.size = info.Size()
	}
	return s, errors.Join(err, dst.Close())
}

// placeSpare makes an artifact of what is in the directory compiled that is in no cache.
func placeSpare(compiled *os.File, spare string) (_ *Artifact, err error) {
	defer func() {
		if err != nil {
			os.RemoveAll(spare)
		}
	}()
	sums, err := copyOut(compiled, spare)
	if err != nil {
		return nil, fmt.Errorf("compiled module: %w", err)
	}
	dir, err := os.Open(spare)
	if err != nil {
		return nil, fmt.Errorf("compiled module: %w", err)
	}
	a := &Artifact{Dir: dir, spare: spare}
	for _, s := range sums {
		a.Size += s.size
	}
	return a, nil
}
