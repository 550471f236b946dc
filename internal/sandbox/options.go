package sandbox

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes are the mount options that belong to the mount, not to the file
// system: mount_setattr(2). With an r in front they are meant for the mounts
// below too.
var attributes = map[string]struct{ set, clear uint64 }{
	"ro":          {set: unix.MOUNT_ATTR_RDONLY},
	"rw":          {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":      {set: unix.MOUNT_ATTR_NOSUID},
	"suid":        {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":       {set: unix.MOUNT_ATTR_NODEV},
	"dev":         {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":      {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":        {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":  {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":    {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":   {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	// The access time policy is a field, not a bit: it is cleared to be set.
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {clear: unix.MOUNT_ATTR__ATIME},
}

// undone are the options that undo another, of the same mount: what the source of
// a bind mount has stays, as it does with mount(2).
var undone = map[string]uint64{
	"atime": unix.MOUNT_ATTR_NOATIME, "norelatime": unix.MOUNT_ATTR_RELATIME, "nostrictatime": unix.MOUNT_ATTR_STRICTATIME,
}

// superblockFlags are the options that mount(2) takes as flags and that belong to
// the file system. A bind mount makes none, so there they say nothing.
var superblockFlags = map[string]bool{
	"sync": true, "async": true, "dirsync": true, "lazytime": true, "nolazytime": true, "mand": true, "nomand": true,
}

// idleOptions say nothing that the kernel could be told of a new mount.
var idleOptions = map[string]bool{
	"": true, "defaults": true, "silent": true, "loud": true, "iversion": true, "noiversion": true,
}

// follows says of each propagation whether what the host mounts later is to be
// seen. That is all there is to it: a guest mounts nothing that could go the other
// way, or be bound elsewhere.
var follows = map[string]bool{
	"private": false, "rprivate": false, "unbindable": false, "runbindable": false,
	"slave": true, "rslave": true, "shared": true, "rshared": true,
}

// CheckPropagation looks whether p is a propagation that a root file system can be
// asked to have. None makes a difference: it is a mount of this container's alone.
func CheckPropagation(p string) error {
	if _, ok := follows[p]; !ok && p != "" {
		return fmt.Errorf("%q: unknown", p)
	}
	return nil
}

// mountOptions are a mount's options, sorted by who takes them.
type mountOptions struct {
	bind, recursive bool
	follow          bool           // show what the host mounts later
	copyUp          bool           // of what the new file system covers
	idmap           uint           // AT_RECURSIVE where the mounts below are mapped too
	mapped          bool           // by the mount's mappings, or the container's
	attr            unix.MountAttr // of the mount
	attrRecursive   unix.MountAttr // of the mount and those below it
	flags           []string       // of the file system, as those of superblockFlags
	data            []string       // of the file system
}

func parseMountOptions(options []string) mountOptions {
	var o mountOptions
	for _, opt := range options {
		follow, propagation := follows[opt]
		policy, undoes := undone[opt]
		a, attribute := attributes[opt]
		r, recursive := attributes[strings.TrimPrefix(opt, "r")]
		switch {
		case opt == "bind":
			o.bind = true
		case opt == "rbind":
			o.bind, o.recursive = true, true
		case opt == "tmpcopyup":
			o.copyUp = true
		case idleOptions[opt]:
		case propagation:
			o.follow = follow
		case opt == "idmap":
			o.mapped = true
		case opt == "ridmap":
			o.mapped, o.idmap = true, unix.AT_RECURSIVE
		case superblockFlags[opt]:
			o.flags = append(o.flags, opt)
		case undoes:
			if o.attr.Attr_set&unix.MOUNT_ATTR__ATIME == policy {
				o.attr.Attr_set &^= unix.MOUNT_ATTR__ATIME
				o.attr.Attr_clr &^= unix.MOUNT_ATTR__ATIME
			}
		case attribute:
			o.attr.Attr_set = o.attr.Attr_set&^a.clear | a.set
			o.attr.Attr_clr |= a.clear
		case recursive && strings.HasPrefix(opt, "r"):
			o.attrRecursive.Attr_set = o.attrRecursive.Attr_set&^r.clear | r.set
			o.attrRecursive.Attr_clr |= r.clear
		default:
			o.data = append(o.data, opt)
		}
	}
	return o
}

// mapOptions maps the users and groups that the options of a file system name.
func (m *IDMappings) mapOptions(options []string) ([]string, error) {
	if m == nil {
		return options, nil
	}
	mapped := make([]string, len(options))
	for i, opt := range options {
		mapped[i] = opt
		key, value, _ := strings.Cut(opt, "=")
		ids := m.UIDs
		switch key {
		case "uid":
		case "gid":
			ids = m.GIDs
		default:
			continue
		}
		id, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("option %s: not a number", opt)
		}
		host, ok := toHost(ids, uint32(id))
		if !ok {
			return nil, fmt.Errorf("option %s: not mapped in the user namespace", opt)
		}
		mapped[i] = fmt.Sprintf("%s=%d", key, host)
	}
	return mapped, nil
}

// mountFlags are those of mount(2) that set what is not set by default.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "lazytime": unix.MS_LAZYTIME, "mand": unix.MS_MANDLOCK,
}
