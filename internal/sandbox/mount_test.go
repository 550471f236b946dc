package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestMountOptionsAreSortedByWhoTakesThem(t *testing.T) {
	for _, tt := range []struct {
		options string
		want    mountOptions
	}{
		{"", mountOptions{}},
		{"defaults", mountOptions{}},
		{"bind", mountOptions{bind: true}},
		{"rbind", mountOptions{bind: true, recursive: true}},
		{"rbind,rprivate,ro", mountOptions{
			bind: true, recursive: true,
			attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY},
		}},
		{"bind,idmap", mountOptions{bind: true, mapped: true}},
		{"rbind,ridmap", mountOptions{bind: true, recursive: true, mapped: true, idmap: unix.AT_RECURSIVE}},
		{"rslave", mountOptions{follow: true}},
		{"rbind,shared", mountOptions{bind: true, recursive: true, follow: true}},
		{"slave,private", mountOptions{}},
		{"unbindable,silent,iversion", mountOptions{}},
		{"tmpcopyup,size=1m", mountOptions{copyUp: true, data: []string{"size=1m"}}},
		{"sync,lazytime,nomand", mountOptions{flags: []string{"sync", "lazytime", "nomand"}}},
		{"nosuid,nodev,noexec,nodiratime,nosymfollow", mountOptions{

			attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC |
				unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW},
		}},
		{"suid,dev,exec,diratime,symfollow,rw", mountOptions{

			attr: unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC |
				unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW | unix.MOUNT_ATTR_RDONLY},
		}},
		{"ro,rw", mountOptions{attr: unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}}},
		{"rw,ro", mountOptions{

			attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Attr_clr: unix.MOUNT_ATTR_RDONLY},
		}},
		{"noatime", mountOptions{

			attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
		}},
		{"noatime,strictatime", mountOptions{

			attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_STRICTATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
		}},
		{"noatime,relatime", mountOptions{

			attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RELATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
		}},
		{"norelatime", mountOptions{}},
		{"noatime,atime", mountOptions{}},
		{"noatime,norelatime", mountOptions{attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOATIME, Attr_clr: unix.MOUNT_ATTR__ATIME}}},
		{"ro,strictatime,nostrictatime", mountOptions{attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}}},
		{"rro,rnosuid", mountOptions{
			attrRecursive: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID},
		}},
		{"rrw", mountOptions{attrRecursive: unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}}},
		{"rrelatime", mountOptions{attrRecursive: unix.MountAttr{Attr_clr: unix.MOUNT_ATTR__ATIME}}},
		{"size=64k,mode=1777,rsize=1", mountOptions{data: []string{"size=64k", "mode=1777", "rsize=1"}}},
	} {
		t.Run(tt.options, func(t *testing.T) {
			got := parseMountOptions(strings.Split(tt.options, ","))
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestMountsThatAGuestHasNoUseForAreLeftOut(t *testing.T) {
	for _, fstype := range []string{"proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"} {
		s, err := openSource(specs.Mount{Type: fstype, Source: fstype, Options: []string{"shared"}}, Config{})
		if s != nil || err != nil {
			t.Errorf("%s: got %v, %v, want neither a mount nor an error", fstype, s, err)
		}
	}
}

func TestAMountThatCannotBeMadeIsAnError(t *testing.T) {
	mappings := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}}
	for name, m := range map[string]specs.Mount{
		"an option unknown to a bind mount":  {Type: "bind", Source: "/", Options: []string{"size=1"}},
		"bind by option, with another":       {Type: "none", Source: "/", Options: []string{"bind", "mode=1"}},
		"uid mappings alone":                 {Type: "bind", Source: "/", UIDMappings: mappings},
		"gid mappings alone":                 {Type: "bind", Source: "/", GIDMappings: mappings},
		"a container's mappings, of none":    {Type: "bind", Source: "/", Options: []string{"idmap"}},
		"mappings of no bind mount":          {Type: "tmpfs", UIDMappings: mappings, GIDMappings: mappings},
		"a copy, of no new file system":      {Type: "bind", Source: "/", Options: []string{"tmpcopyup"}},
		"a copy, in no tmpfs":                {Type: "ramfs", Options: []string{"tmpcopyup"}},
		"a kernel file system":               {Type: "debugfs"},
		"devices of the host":                {Type: "devtmpfs"},
		"an overlay of a kernel file system": {Type: "overlay", Options: []string{"lowerdir=/tmp:/sys"}},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := openSource(m, Config{}); err == nil {
				t.Errorf("got %+v, want an error", s)
			}
		})
	}
}

// tree is a directory, and a descriptor of it.
func tree(t *testing.T) (string, int) {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return dir, fd
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// pathOf is where the open file fd is.
func pathOf(t *testing.T, fd int) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAMissingMountTargetIsMadeInTheRoot(t *testing.T) {
	for _, tt := range []struct {
		name, path string
		dir        bool
		want       string // in the root
	}{
		{"the root itself", "/", true, ""},
		{"an empty path", "", true, ""},
		{"a directory that is there", "/etc", true, "/etc"},
		{"a directory", "/a", true, "/a"},
		{"directories", "/a/b/c", true, "/a/b/c"},
		{"a file", "/etc/hosts", false, "/etc/hosts"},
		{"a file in new directories", "/x/y/hosts", false, "/x/y/hosts"},
		{"a file that is there", "/etc/file", false, "/etc/file"},
		{"a path without a slash", "a/b", true, "/a/b"},
		{"dots", "/../../a/./../b", true, "/b"},
		{"below an absolute link", "/absolute/new", true, "/etc/new"},
		{"below a link that climbs", "/climbing/new/file", false, "/etc/new/file"},
		{"an absolute link itself", "/absolute", true, "/etc"},
		{"a link to a file", "/link", false, "/etc/file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, fd := tree(t)
			mkdir(t, root+"/etc")
			if err := os.WriteFile(root+"/etc/file", []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			symlink(t, "/etc", root+"/absolute")
			symlink(t, "../../../../../../../../etc", root+"/climbing")
			symlink(t, "etc/file", root+"/link")
			target, _, err := makeTarget(fd, tt.path, tt.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(target)
			if got, want := pathOf(t, target), root+tt.want; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			info, err := os.Stat(root + tt.want)
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() != tt.dir {
				t.Errorf("got a directory: %v, want %v", info.IsDir(), tt.dir)
			}
			if got, err := os.ReadFile(root + "/etc/file"); err != nil || string(got) != "kept" {
				t.Errorf("a file of the image has become %q, %v", got, err)
			}
		})
	}
}

func TestAMountTargetIsNotMadeThroughADanglingLink(t *testing.T) {
	for _, tt := range []struct {
		name, path string
		dir        bool
		want       error
	}{
		{"the target", "/dangling", true, unix.EEXIST},
		{"the target, a file", "/dangling", false, unix.EEXIST},
		{"on the way", "/dangling/a/b", true, unix.EEXIST},
		{"out of the root", "/outside", true, unix.EEXIST},
		{"below a file", "/file/a", true, unix.ENOTDIR},
		{"a loop", "/loop/a", true, unix.ELOOP},
		{"a name too long", "/" + strings.Repeat("a", 256), true, unix.ENAMETOOLONG},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, fd := tree(t)
			outside := filepath.Join(t.TempDir(), "made")
			symlink(t, "/missing", root+"/dangling")
			symlink(t, outside, root+"/outside")
			symlink(t, "loop", root+"/loop")
			if err := os.WriteFile(root+"/file", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			target, _, err := makeTarget(fd, tt.path, tt.dir)
			if err == nil {
				unix.Close(target)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			for _, path := range []string{root + "/missing", outside} {
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s has been made", path)
				}
			}
		})
	}
}

func TestOpeningInARootStaysInIt(t *testing.T) {
	root, fd := tree(t)
	mkdir(t, root+"/etc")
	if err := os.WriteFile(root+"/etc/passwd", []byte("the container's"), 0o600); err != nil {
		t.Fatal(err)
	}
	symlink(t, "/etc/passwd", root+"/absolute")
	symlink(t, strings.Repeat("../", 40)+"etc/passwd", root+"/climbing")
	symlink(t, "/proc/self/root/etc/passwd", root+"/magic")
	for _, path := range []string{"/etc/passwd", "etc/passwd", "/absolute", "/climbing", "/../../etc/passwd"} {
		f, err := OpenInRoot(fd, path, unix.O_RDONLY)
		if err != nil {
			t.Error(err)
			continue
		}
		if got, want := pathOf(t, int(f.Fd())), root+"/etc/passwd"; got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
		f.Close()
	}
	for _, path := range []string{"/magic", "/none", "/etc/hosts"} {
		if f, err := OpenInRoot(fd, path, unix.O_RDONLY); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v, %v, want %v", path, f, err, os.ErrNotExist)
		}
	}
}

func TestAMagicLinkOfProcfsIsNotFollowed(t *testing.T) {
	proc, err := unix.Open("/proc/self", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	for _, path := range []string{"/exe", "/cwd", "/root/etc"} {
		fd, err := openInRoot(proc, path, unix.O_RDONLY)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: got %v, want %v", path, err, unix.ELOOP)
		}
	}
}

func TestAFileOpenedInARootIsNotInherited(t *testing.T) {
	_, fd := tree(t)
	f, err := OpenInRoot(fd, "/", unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("got flags %#x, %v, want FD_CLOEXEC", flags, err)
	}
}

func TestAnOldKernelIsNamed(t *testing.T) {
	if err := needsKernel(unix.ENOSYS); !errors.Is(err, unix.ENOSYS) || !strings.Contains(err.Error(), "5.12") {
		t.Errorf("got %v, want the version that is needed", err)
	}
	if got, want := needsKernel(unix.EPERM), error(unix.EPERM); !errors.Is(got, want) || got.Error() != want.Error() {
		t.Errorf("got %v, want %v", got, want)
	}
}
