package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A cost is what processes take of a machine.
type cost struct {
	pss, private         float64 // KiB
	descriptors, threads int
	cpu                  time.Duration
	switches             int // how often they went to sleep
}

func (c cost) add(d cost) cost {
	return cost{c.pss + d.pss, c.private + d.private, c.descriptors + d.descriptors, c.threads + d.threads, c.cpu + d.cpu, c.switches + d.switches}
}

// costOf asks the kernel what a process takes. Its processor time is that of its
// clock: utime and stime, with the threads that have ended, in nanoseconds where
// /proc/PID/stat has ticks of ten milliseconds.
func costOf(pid int) (c cost, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	rollup, err := os.ReadFile(dir + "/smaps_rollup")
	if err != nil {
		return c, err
	}
	if c.pss, c.private, err = memoryOf(rollup); err != nil {
		return c, fmt.Errorf("%s/smaps_rollup: %w", dir, err)
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return c, err
	}
	tasks, err := filepath.Glob(dir + "/task/*/status")
	if err != nil {
		return c, err
	}
	for _, name := range tasks {
		status, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a thread that ended meanwhile
		}
		n, e := switchesOf(status)
		if err = errors.Join(err, e); err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
		c.switches += n
	}
	c.descriptors, c.threads = len(fds), len(tasks)
	var t unix.Timespec
	// As clock_getcpuclockid(3) makes one.
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return c, fmt.Errorf("clock of process %d: %w", pid, err)
	}
	c.cpu = time.Duration(t.Nano())
	return c, nil
}

// memoryOf reads smaps_rollup: proportional and private memory, KiB.
func memoryOf(rollup []byte) (pss, private float64, err error) {
	found := false
	for line := range strings.Lines(string(rollup)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue // the first line, which is an address range
		}
		kib, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return 0, 0, err
		}
		switch f[0] {
		case "Pss:":
			pss, found = kib, true
		case "Private_Clean:", "Private_Dirty:":
			private += kib
		}
	}
	if !found {
		return 0, 0, fmt.Errorf("no Pss in %q", rollup)
	}
	return pss, private, nil
}

func switchesOf(status []byte) (int, error) {
	_, rest, found := bytes.Cut(status, []byte("\nvoluntary_ctxt_switches:"))
	if !found {
		return 0, fmt.Errorf("no voluntary_ctxt_switches in %q", status)
	}
	value, _, _ := bytes.Cut(rest, []byte("\n"))
	return strconv.Atoi(string(bytes.TrimSpace(value)))
}

// parentOf reads /proc/PID/stat, whose second field is a name that may have
// anything in it. A zombie, which takes nothing any more, is told apart.
func parentOf(stat []byte) (parent int, zombie bool, err error) {
	end := bytes.LastIndexByte(stat, ')')
	f := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(f) < 2 {
		return 0, false, fmt.Errorf("not of the form of /proc/PID/stat: %q", stat)
	}
	parent, err = strconv.Atoi(f[1])
	return parent, f[0] == "Z", err
}

// A family is a process and all that descend from it.
type family []int

// families are those of the machine whose first process runs one of the programs:
// shims, and whatever else of this kind there is, with their children. A program
// is known by its file, for the name in /proc is of a mount that may be elsewhere.
func families(programs ...string) ([]family, error) {
	var files []fs.FileInfo
	for _, name := range programs {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		files = append(files, info)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	children, parents, ours := map[int][]int{}, map[int]int{}, map[int]bool{}
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		parent, zombie, err := parentOf(stat)
		if err != nil {
			return nil, err
		}
		if zombie {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		children[parent], parents[pid] = append(children[parent], pid), parent
		if exe, err := os.Stat(dir + "/exe"); err == nil {
			ours[pid] = slices.ContainsFunc(files, func(f fs.FileInfo) bool { return os.SameFile(f, exe) })
		}
	}
	var all []family
	for pid, is := range ours {
		if !is || ours[parents[pid]] {
			continue
		}
		f := family{pid}
		for i := 0; i < len(f); i++ {
			f = append(f, children[f[i]]...)
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b family) int { return a[0] - b[0] })
	return all, nil
}

func (f family) cost() (sum cost, err error) {
	for _, pid := range f {
		c, err := costOf(pid)
		if err != nil {
			return sum, err
		}
		sum = sum.add(c)
	}
	return sum, nil
}
