// Package sandbox builds the walls around an instance process: its namespaces,
// its root file system, its credentials and its cgroup. It knows neither
// containerd nor wazero.
//
// The process builds none of them itself, so it is never privileged: it is born
// with the user, the capabilities and the cgroup it is to have, in a mount
// namespace that belongs to a thread of its parent, where it sees nothing of the
// host. That thread moves it, from outside, into the container's files:
//
//	NewWalls       a thread in new mount and UTS namespaces. The root of the former is
//	               a staging root; the thread still has the host's, which no path leads to
//	Walls.Start    the process, in these namespaces, by way of a Parent; beside that
//	Walls.Build    mounts; hooks; the thread has the staging root too, and the host's is gone
//	Walls.Attach   one directory of the host, read-only, in the staging root
//	               (the process may read untrusted bytes from here on)
//	Walls.Enter    the root of both is the container's; the staging root is gone
//	Walls.Close    the thread ends
//
// That a thread can change another process's root is in pivot_root(2): the call
// changes it for every process of the mount namespace whose root the old one is.
package sandbox

import (
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config says which walls to build. Every field but Base and NewUserNamespace is
// taken from the OCI runtime specification and means what it means there.
type Config struct {
	// Program is the name under which the process runs the stage's program.
	Program string
	// Base is a directory of the host, the bundle: relative bind sources start
	// here, and in the process's mount namespace the staging root is mounted over
	// it on its way to becoming the root.
	Base string
	// Rootfs is the container's root file system as mounted on the host; or, with
	// the namespaces of another process, as that sees it: "/" is its root, mounts
	// and all. Empty for a process that needs no files of a container.
	Rootfs   string
	Readonly bool
	Mounts   []specs.Mount
	Devices  []specs.LinuxDevice // beside those of every /dev
	// What of the files is hidden, and what cannot be written.
	MaskedPaths   []string
	ReadonlyPaths []string

	Namespaces Namespaces
	// IDs say who User is to the host, and who owns what is made here. A process
	// that is somebody else to the host has no capability there.
	IDs *IDMappings
	// NewUserNamespace makes a user namespace, for mounts that map ids.
	NewUserNamespace func(IDMappings) (*os.File, error)
	Sysctl           map[string]string
	Hostname         string
	Domainname       string

	// Cwd is created in the root file system when the image lacks it, though not
	// in that of another process.
	Cwd          string
	User         specs.User
	Capabilities []string // what the process is to have effective
	Rlimits      []specs.POSIXRlimit
	OOMScoreAdj  *int

	Labels       Labels
	Scheduling   Scheduling
	MemoryPolicy *specs.LinuxMemoryPolicy
	// TimeOffsets, unless nil, ask for a time namespace: see [TimeOffsets].
	TimeOffsets map[string]specs.LinuxTimeOffset

	kernelMounts []string // of the host
}

// Check looks whether a process can have the labels, the scheduling, the memory
// policy and the time namespace of cfg.
//
// # Errors
//
//   - the kernel's security module is not there or not enabled
//   - no such AppArmor profile is loaded, or no such SELinux context is defined
//   - a value is none, or one that this machine or an instance process cannot have
func (cfg *Config) Check() error {
	if _, err := cfg.Scheduling.calls(); err != nil {
		return err
	}
	if err := cfg.Labels.checkSELinux(); err != nil {
		return err
	}
	if cfg.TimeOffsets == nil && cfg.MemoryPolicy == nil && cfg.Labels.profile()+cfg.Labels.SELinux == "" {
		return nil
	}
	t := newThread() // it starts nothing
	defer t.close()
	return t.do(cfg.inherit)
}

// inherit has the calling thread take on what those that it starts are to inherit,
// and cannot be given otherwise.
func (cfg *Config) inherit() error {
	if cfg.TimeOffsets != nil {
		if err := unshareTime(cfg.TimeOffsets); err != nil {
			return err
		}
	}
	if cfg.MemoryPolicy != nil {
		if err := setMemoryPolicy(cfg.MemoryPolicy); err != nil {
			return err
		}
	}
	return cfg.Labels.onExec()
}
