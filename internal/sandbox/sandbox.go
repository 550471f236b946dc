// Package sandbox builds the walls of an instance process: its namespaces, its
// root file system, its credentials and its cgroup. It knows neither containerd
// nor wazero.
//
// A parent starts the process in new namespaces ([Namespaces.SysProcAttr]) and
// puts it into a cgroup ([NewCgroup]); the process then builds the rest itself:
//
//	Build            mounts, staging root, host name; the host's files are gone
//	Walls.Attach     one directory of the host, handed over as a mount
//	Walls.Drop       user, groups, capabilities, no_new_privs
//	Walls.Enter      the root becomes the container's; the last capability goes
//
// Between Drop and Enter the process can already read untrusted bytes: it has
// no privilege but chroot(2), in a mount namespace whose root holds nothing but
// the container's root file system and the directory attached.
package sandbox

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config says which walls to build. Every field but Base is taken from the OCI
// runtime specification and means what it means there.
type Config struct {
	// Base is a directory of the host, the bundle: relative bind sources start
	// here, and the new root is mounted over it, in the process's own mount
	// namespace, on its way to becoming the root.
	Base string `json:"base"`
	// Rootfs is the container's root file system as mounted on the host. Empty
	// for a process that needs no files of a container.
	Rootfs   string        `json:"rootfs,omitempty"`
	Readonly bool          `json:"readonly,omitempty"`
	Mounts   []specs.Mount `json:"mounts,omitempty"`

	Hostname   string `json:"hostname,omitempty"`
	Domainname string `json:"domainname,omitempty"`

	// Cwd is created in the root file system when the image lacks it.
	Cwd          string              `json:"cwd,omitempty"`
	User         specs.User          `json:"user"`
	Capabilities []string            `json:"capabilities,omitempty"` // the effective set
	Rlimits      []specs.POSIXRlimit `json:"rlimits,omitempty"`
	OOMScoreAdj  *int                `json:"oomScoreAdj,omitempty"`
}
