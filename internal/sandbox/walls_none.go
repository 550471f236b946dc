//go:build nowalls

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// This is what the benchmark compares with: a process without walls, which runs
// with the host's files and in its namespaces, as the shim's user. Its working
// directory is [Config.Base].

// Where a process without walls finds what it is given.
const (
	Rootfs   = "rootfs"
	Attached = "attached"
)

// Walls are none.
type Walls struct {
	stage *Stage
	cfg   Config
}

// NewWalls does nothing.
func NewWalls(s *Stage, cfg Config) (*Walls, error) { return &Walls{s, cfg}, nil }

// A Birthplace is a cgroup.
type Birthplace interface {
	StartIn(attr *syscall.SysProcAttr, start func() error) error
}

// Start has start run in [Config.Base].
func (w *Walls) Start(_ Birthplace, _ *syscall.SysProcAttr, start func() error) (*Parent, error) {
	p := &Parent{newThread()}
	err := p.thread.do(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // else the whole shim would move along
			return err
		}
		if err := unix.Chdir(w.cfg.Base); err != nil {
			return err
		}
		return start()
	})
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Program is the host's.
func (w *Walls) Program() string { return w.stage.program }

// Limit does nothing.
func (w *Walls) Limit(int) error { return nil }

// Build does nothing.
func (w *Walls) Build(func() error, func(Step)) error { return nil }

// RunHook has start run.
func (w *Walls) RunHook(_ int, start func() error) error { return start() }

// Open opens path of the container's root file system.
func (w *Walls) Open(path string, flags int) (*os.File, error) {
	root, err := os.Open(w.cfg.Rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return OpenInRoot(int(root.Fd()), path, flags)
}

// Attach makes a link to dir, in place of one that is there.
func (w *Walls) Attach(dir *os.File) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	link := filepath.Join(w.cfg.Base, Attached)
	if err := os.RemoveAll(link); err != nil {
		return err
	}
	return os.Symlink(path, link)
}

// AttachNew makes a directory.
func (w *Walls) AttachNew(uint64, int) (*os.File, error) {
	path := filepath.Join(w.cfg.Base, Attached)
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// Enter does nothing.
func (w *Walls) Enter() error { return nil }

// Close does nothing.
func (w *Walls) Close() {}

// Follower is none.
func (w *Walls) Follower() *Follower { return nil }
