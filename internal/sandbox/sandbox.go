// Package sandbox builds the walls around an instance process: its namespaces,
// its root file system, its credentials and its cgroup. It knows neither
// containerd nor wazero.
//
// The process builds none of them itself, so it is never privileged: it is born
// with the user, the capabilities and the cgroup it is to have, in a mount
// namespace that belongs to a thread of its parent. That thread moves it, from
// outside, out of the host's files and then into the container's:
//
//	NewWalls       a thread in new mount and UTS namespaces, still with the host's files
//	Walls.Start    the process, in these namespaces, by way of a Spawner
//	Walls.Build    mounts; the root of both is now a staging root: no file of the host
//	Walls.Attach   one directory of the host, read-only, in the staging root
//	               (the process may read untrusted bytes from here on)
//	Walls.Enter    the root of both is the container's; the staging root is gone
//	Walls.Close    the thread ends
//
// That a thread can change another process's root is in pivot_root(2): the call
// changes it for every process of the mount namespace whose root the old one is.
package sandbox

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config says which walls to build. Every field but Base is taken from the OCI
// runtime specification and means what it means there.
type Config struct {
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

	Namespaces Namespaces
	Hostname   string
	Domainname string

	// Cwd is created in the root file system when the image lacks it, though not
	// in that of another process.
	Cwd          string
	User         specs.User
	Capabilities []string // what the process is to have effective
	// UIDMappings and GIDMappings are those of the container's user namespace, if
	// it has one: User is the one they map it to, and has no capability.
	UIDMappings []specs.LinuxIDMapping
	GIDMappings []specs.LinuxIDMapping
	Rlimits     []specs.POSIXRlimit
	OOMScoreAdj *int
}
