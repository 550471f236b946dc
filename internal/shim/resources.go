package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/cgroup"
)

// metrics are the figures of a cgroup as containerd and, through it, the kubelet
// read them: the Metrics of version 1 or of version 2. They can be had for as
// long as the cgroup is there.
func metrics(c *cgroup.Cgroup) (*anypb.Any, error) {
	read := metrics1
	if cgroups.IsCgroup2UnifiedMode() {
		read = metrics2
	}
	m, err := read(c.Paths())
	if errors.Is(err, cgroup1.ErrCgroupDeleted) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("metrics: the cgroup is gone: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return typeurl.MarshalAnyToProto(m)
}

func metrics1(paths map[string]string) (any, error) {
	// The subsystems are looked for below a root of the library's choosing; from
	// there a relative path leads to where they are.
	const root = "/"
	path := func(subsystem cgroup1.Name) (string, error) {
		dir := paths[string(subsystem)]
		if dir == "" {
			return "", cgroup1.ErrControllerNotActive
		}
		return filepath.Rel(filepath.Join(root, string(subsystem)), dir)
	}
	subsystems := func() ([]cgroup1.Subsystem, error) {
		all := []cgroup1.Subsystem{
			cgroup1.NewCpu(root), cgroup1.NewCpuacct(root), cgroup1.NewMemory(root), cgroup1.NewPids(root),
			cgroup1.NewBlkio(root), cgroup1.NewRdma(root),
		}
		if pages, err := cgroup1.NewHugetlb(root); err == nil { // else the kernel has none
			all = append(all, pages)
		}
		return all, nil
	}
	c, err := cgroup1.Load(path, cgroup1.WithHierarchy(subsystems))
	if err != nil {
		return nil, err
	}
	return c.Stat(cgroup1.IgnoreNotExist)
}

func metrics2(paths map[string]string) (any, error) {
	if _, err := os.Stat(paths[""]); err != nil { // which the library takes for zeros
		return nil, err
	}
	c, err := cgroup2.Load("/", cgroup2.WithMountpoint(paths[""]))
	if err != nil {
		return nil, err
	}
	return c.Stat()
}

// limits are the resources of an Update request. Every error unwraps to
// [errdefs.ErrInvalidArgument].
func limits(a *anypb.Any) (*specs.LinuxResources, error) {
	v, err := typeurl.UnmarshalAny(a)
	if err != nil {
		return nil, fmt.Errorf("resources of type %q: %w: %w", a.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
	}
	r, ok := v.(*specs.LinuxResources)
	if !ok {
		return nil, fmt.Errorf("resources of type %q: want LinuxResources: %w", a.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// update changes the limits of a cgroup. When it fails it has changed none.
//
// # Errors
//
//   - [errdefs.ErrInvalidArgument]: what is asked for is no limit
//   - [errdefs.ErrFailedPrecondition]: it cannot be had now; there is more memory in use
func update(c *cgroup.Cgroup, a *anypb.Any) error {
	r, err := limits(a)
	if err != nil {
		return err
	}
	err = c.Update(r)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("update: %w: %w", err, errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("update: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// tellOOM announces that the kernel has killed a process of the container id for
// want of memory, if it has since the last time. To be called for the exit of
// each of its processes, before that is announced. It says whether it did.
func (h *host) tellOOM(ctx context.Context, id string, c *cgroup.Cgroup) bool {
	kills, err := c.NewOOMKills()
	if err != nil {
		log.G(ctx).WithError(err).Debug("ask for OOM kills")
	}
	if kills > 0 {
		h.outbox.send(ctx, &eventstypes.TaskOOM{ContainerID: id})
	}
	return kills > 0
}

// launchLimits are the limits of a cgroup that a process may be launched in vain
// for, and how often they have been in the way.
type launchLimits struct {
	cgroup         *cgroup.Cgroup
	memory         uint64 // bytes; 0 is none
	kills, refused uint64
}

func (c *container) limits() (l launchLimits, err error) {
	l.cgroup = c.cgroup
	if l.memory, err = c.cgroup.MemoryLimit(); err != nil {
		return l, err
	}
	l.kills, l.refused, err = l.counts()
	return l, err
}

func (l launchLimits) counts() (kills, refused uint64, err error) {
	kills, err = l.cgroup.OOMKills()
	refused, e := l.cgroup.PidsRefused()
	return kills, refused, errors.Join(err, e)
}

// explain names the limit that has been in the way of a launch which failed with
// err, if one has. The error then unwraps to [errdefs.ErrInvalidArgument].
func (l launchLimits) explain(err error) error {
	kills, refused, e := l.counts()
	switch {
	case e != nil: // the cgroup is gone
	case kills > l.kills:
		return fmt.Errorf("the memory limit of the container, %d bytes, is too small to load the module: %w: %w", l.memory, err, errdefs.ErrInvalidArgument)
	case refused > l.refused:
		pids, _ := l.cgroup.PidsLimit() // only to say so
		return fmt.Errorf("the pids limit of the container, %d processes and threads, is too small: %w: %w", pids, err, errdefs.ErrInvalidArgument)
	}
	return err
}
