package sandbox

import "time"

// A Step is one of those that [Walls.Build] takes, and that may take its time: where
// the files are is for the specification to say.
type Step struct {
	Name  string // one of those below
	Path  string // of a mount: its destination; else empty
	Began time.Time
	Err   error // how it ended, just now
}

// The steps of [Walls.Build].
const (
	StepFollow  = "follow"  // list the mounts of the host that are to be followed
	StepClone   = "clone"   // clone the root file system and what is mounted in it
	StepMount   = "mount"   // open what is to be mounted, and again to attach it
	StepDevices = "devices" // make the devices
	StepProtect = "protect" // make the working directory, hide and protect paths
)
