package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"golang.org/x/sys/unix"
)

// thisMachine finds out what the figures are of: the machine from the kernel, the
// programs from themselves. Nothing tells which machine it is.
func thisMachine(b *bench, others float64) (machine, error) {
	var errs []error
	read := func(name string) string {
		data, err := os.ReadFile(name)
		errs = append(errs, err)
		return string(data)
	}
	version := func(program string, args ...string) string {
		out, err := exec.Command(filepath.Join(b.bin, program), args...).Output()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", program, err))
		}
		return string(out)
	}
	first := func(text, pattern string) string {
		if m := regexp.MustCompile(pattern).FindStringSubmatch(text); m != nil {
			return strings.TrimSpace(m[1])
		}
		return "unknown"
	}
	cpuinfo := read("/proc/cpuinfo")
	processor := fmt.Sprintf("%d × %s", runtime.NumCPU(), first(cpuinfo, `(?m)^model name\s*:(.*)$`))
	if regexp.MustCompile(`(?m)^flags\s*:.*\bhypervisor\b`).MatchString(cpuinfo) {
		processor += ", virtual"
	}
	kib, err := strconv.Atoi(first(read("/proc/meminfo"), `MemTotal:\s*(\d+) kB`))
	errs = append(errs, err)
	cgroup := "v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cgroup = "v2"
	}
	var fs unix.Statfs_t
	errs = append(errs, unix.Statfs(b.n.Dir, &fs))
	m := machine{
		{"processor", processor},
		{"in use by others as the run began", fmt.Sprintf("%.0f %% of the processors", 100*others)},
		{"memory", fmt.Sprintf("%.1f GiB", float64(kib)/(1<<20))},
		{"kernel", "Linux " + first(read("/proc/sys/kernel/osrelease"), `^([0-9.]+)`) + ", " + runtime.GOARCH},
		{"cgroups", cgroup},
		{"snapshots", defaults.DefaultSnapshotter + " on " + fileSystem(fs.Type)},
		{"containerd", first(version("containerd", "--version"), ` v?([0-9]+\.[0-9]+\.[0-9]+)`)},
		{"runc", first(version("runc", "--version"), `version (\S+)`) + ", " + symbols(filepath.Join(b.bin, "runc"))},
		{"shim", first(version(wazeroShim, "--version"), `Version:\s*(\S+)`)},
		{"Go", runtime.Version()},
	}
	return m, errors.Join(errs...)
}

// busy is how much of the machine's processors is in use, 0 to 1, over half a second:
// by others, before a run has begun.
func busy() (float64, error) {
	read := func() (used, all float64, err error) {
		data, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0, 0, err
		}
		return usedOf(data)
	}
	used, all, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(500 * time.Millisecond)
	usedThen, allThen, err := read()
	if err != nil || allThen <= all {
		return 0, err
	}
	return (usedThen - used) / (allThen - all), nil
}

// usedOf reads the first line of /proc/stat: the time of all processors that was not
// spent waiting, and all of it, in ticks.
func usedOf(stat []byte) (used, all float64, err error) {
	first, _, _ := strings.Cut(string(stat), "\n")
	f := strings.Fields(first)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, 0, fmt.Errorf("not of the form of /proc/stat: %q", first)
	}
	for i, field := range f[1:9] { // what is behind them is in them
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, 0, err
		}
		all += ticks
		if i != 3 && i != 4 { // idle, and waiting for a disk
			used += ticks
		}
	}
	return used, all, nil
}

func fileSystem(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	}
	return fmt.Sprintf("file system %#x", magic)
}

// symbols tells whether a program has been stripped: one that has not is larger, and
// slower to start.
func symbols(name string) string {
	f, err := elf.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if f.Section(".symtab") != nil {
		return "not stripped"
	}
	return "stripped"
}
