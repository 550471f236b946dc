//go:build !nowalls

package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// makeDevice makes d in the root file system. What can be done with it is up to
// the cgroup and to its mode.
//
// It is made in a tmpfs of this container's. Elsewhere devices are closed
// (nodev), and a volume's other users could put a link in place of what is to be
// changed: there it is mounted.
func (w *Walls) makeDevice(d specs.LinuxDevice) error {
	n, err := newNode(d, w.cfg.IDs)
	if err != nil {
		return err
	}
	parent, name := filepath.Split(cleanPath(d.Path))
	up, _, err := makeTarget(w.tree, parent, true)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	var st unix.Stat_t
	if err := unix.Fstat(up, &st); err != nil {
		return err
	}
	if w.ownTmpfs(st.Dev) {
		err := n.make(up, name)
		if errors.Is(err, unix.EEXIST) && unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && n.is(&st) {
			return nil // given twice
		}
		return err
	}
	if err := unix.Mknodat(up, name, unix.S_IFREG|0o644, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	} else if err != nil {
		if err := unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		empty := st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 // as this makes, and a volume keeps
		if !empty && !n.is(&st) {
			return unix.EEXIST
		}
	}
	target, err := unix.Openat(up, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	mount, err := n.clone(w.cfg.Base)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return moveMount(mount, target)
}

// ownTmpfs tells whether dev is a tmpfs that was made for this container.
func (w *Walls) ownTmpfs(dev uint64) bool {
	return slices.ContainsFunc(w.sources, func(s *source) bool { return s != nil && s.tmpfs && s.dev == dev })
}

// makeDevices makes the devices that the specification asks for, and those of
// every /dev: what is there in the image stays, and so does a /dev that is bound.
func (w *Walls) makeDevices() error {
	given := map[string]bool{}
	for _, d := range w.cfg.Devices {
		given[cleanPath(d.Path)] = true
		if err := w.makeDevice(d); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	for i, m := range w.cfg.Mounts {
		if s := w.sources[i]; s != nil && cleanPath(m.Destination) == "/dev" && !s.tmpfs {
			return nil
		}
	}
	for _, d := range Devices {
		if given[d.Path] {
			continue
		}
		if err := w.makeDevice(d); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return nil
}
