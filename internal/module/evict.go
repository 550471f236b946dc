package module

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound a cache. What is over them goes: what has not been used for longest first,
// and nothing that is in use.
type Limits struct {
	Size    int64 // bytes on the disk; 0 for a twentieth of that, and 10 GiB at most
	Entries int   // 0 for 4096
}

const (
	maxSize    = 10 << 30
	partOfDisk = 20
	maxEntries = 4096
)

// An EntryInfo is what is known of an entry without reading it.
type EntryInfo struct {
	Name    string // of its directory
	Digest  string // of the module
	Engine  string // its version
	Size    int64  // on the disk, bytes
	Used    time.Time
	Current bool // is what this machine and this version would use
}

// List is what is in the cache, the one that was used last first.
func (c *Cache) List() ([]EntryInfo, error) {
	dir, err := c.openOld()
	if dir == nil {
		return nil, err
	}
	defer dir.Close()
	return c.list(dir)
}

// openOld is nil where there is no directory yet.
func (c *Cache) openOld() (*os.File, error) {
	if _, err := os.Lstat(c.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return c.open()
}

// Clear removes the entries that keep does not want kept, but for those in use, and says
// which those were. What was left by processes that are gone is removed in any case.
func (c *Cache) Clear(ctx context.Context, keep func(EntryInfo) bool) (removed, busy []EntryInfo, err error) {
	dir, err := c.openOld()
	if dir == nil {
		return nil, nil, err
	}
	defer dir.Close()
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	sweepLocked(dir)
	entries, err := c.list(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		switch {
		case keep(e):
		case removeLocked(dir, e.Name):
			removed = append(removed, e)
		default:
			busy = append(busy, e)
		}
	}
	return removed, busy, nil
}

// list is the entries, the one that was used last first.
func (c *Cache) list(dir *os.File) ([]EntryInfo, error) {
	names, err := os.ReadDir(dir.Name())
	if err != nil {
		return nil, fmt.Errorf("compile cache: %w", err)
	}
	var all []EntryInfo
	for _, n := range names {
		name := n.Name()
		if strings.HasPrefix(name, newPrefix) || strings.HasPrefix(name, oldPrefix) || strings.HasSuffix(name, lockSuffix) {
			continue
		}
		all = append(all, c.info(dir, name))
	}
	slices.SortFunc(all, func(a, b EntryInfo) int { return b.Used.Compare(a.Used) })
	return all, nil
}

// block is what files on a disk are made of, as far as sizes are concerned.
const block = 4 << 10

// info is of an entry, by its sums: of one without, nothing is known but that it is the
// first to go.
func (c *Cache) info(dir *os.File, name string) EntryInfo {
	e := EntryInfo{Name: name, Size: block}
	digest, rest, _ := strings.Cut(name, "-")
	if i := strings.LastIndexByte(rest, '-'); i > 0 {
		e.Digest, e.Engine = "sha256:"+digest, rest[:i]
		e.Current = c.entry(e.Digest) == name
	}
	f, err := openIn(dir, name+"/"+sumsName, unix.O_RDONLY)
	if err != nil {
		return e
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return e
	}
	sums, err := readSums(f, name)
	if err != nil {
		return e
	}
	e.Used = info.ModTime()
	e.Size += 2 * block // the directories in it, at least
	for _, s := range sums {
		e.Size += (s.size + block - 1) / block * block
	}
	return e
}

// removeLocked removes an entry unless it is in use. The caller has locked the directory.
func removeLocked(dir *os.File, entry string) bool {
	f, err := openIn(dir, entry+"/"+sumsName, unix.O_RDONLY)
	if err == nil && tryLock(f) != nil {
		f.Close()
		return false
	}
	old, err := moveOut(dir, entry)
	if f != nil {
		f.Close()
	}
	if err != nil {
		return false
	}
	remove(dir, old)
	return true
}

// evictLocked removes what is over the limits. The caller has locked the directory.
func (c *Cache) evictLocked(ctx context.Context, dir *os.File) {
	limit := c.limits().Size
	if limit == 0 {
		var st unix.Statfs_t
		if unix.Fstatfs(int(dir.Fd()), &st) != nil {
			return
		}
		limit = min(int64(st.Blocks)*st.Bsize/partOfDisk, maxSize)
	}
	c.shrinkLocked(ctx, dir, func(used int64) bool { return used > limit })
}

// makeRoom removes entries that have some bytes together.
func (c *Cache) makeRoom(ctx context.Context, dir *os.File, bytes int64) error {
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	first := int64(-1)
	c.shrinkLocked(ctx, dir, func(used int64) bool {
		if first < 0 {
			first = used
		}
		return first-used < bytes
	})
	return nil
}

// shrinkLocked removes entries as long as those that are left use too much.
func (c *Cache) shrinkLocked(ctx context.Context, dir *os.File, tooMuch func(used int64) bool) {
	entries, err := c.list(dir)
	if err != nil {
		return // it would be in the way of more than this
	}
	number := c.limits().Entries
	if number == 0 {
		number = maxEntries
	}
	var used int64
	for _, e := range entries {
		used += e.Size
	}
	left := len(entries)
	for _, e := range slices.Backward(entries) {
		if !tooMuch(used) && left <= number {
			return
		}
		if removeLocked(dir, e.Name) {
			used -= e.Size
			left--
			c.tell(ctx, Event{Kind: Evicted, Entry: e.Name, Size: e.Size})
		}
	}
}

// Path is the directory of the cache.
func (c *Cache) Path() string { return filepath.Clean(c.dir) }
