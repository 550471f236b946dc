package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// needRoot skips or fails a test that makes cgroups.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("TEST_ROOT") != "" || os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: run `sudo make test`")
}

// number tells cgroups apart that are made at the same time.
var number atomic.Int64

// made is a cgroup that exists, until the end of the test.
func made(t *testing.T, limits *specs.LinuxResources) *Cgroup {
	t.Helper()
	needRoot(t)
	c, err := New(fmt.Sprintf("/wazero-test-%d-%d", time.Now().UnixNano(), number.Add(1)), "", limits, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Adopt(true), c.Destroy()); err != nil {
			t.Error(err)
		}
		for _, dir := range c.Paths() {
			if cgroups.PathExists(dir) {
				t.Errorf("left behind: %s", dir)
			}
		}
	})
	if err := c.Create(); err != nil {
		t.Fatal(err)
	}
	return c
}

// sleeper is a process in the cgroup; its end is waited for by itself.
func sleeper(t *testing.T, c *Cgroup) (pid int, ended <-chan struct{}) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := c.StartIn(cmd.SysProcAttr, cmd.Start); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // killed
	}()
	return cmd.Process.Pid, done
}

// limit reads a limit: that of version 2, or else that of a subsystem of version 1.
func limit(t *testing.T, c *Cgroup, unified, subsystem, file string) string {
	t.Helper()
	path := filepath.Join(c.Paths()[""], unified)
	if !cgroups.IsCgroup2UnifiedMode() {
		path = filepath.Join(c.Paths()[subsystem], file)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func memoryLimit(t *testing.T, c *Cgroup) string {
	return limit(t, c, "memory.max", "memory", "memory.limit_in_bytes")
}

func pidsLimit(t *testing.T, c *Cgroup) string { return limit(t, c, "pids.max", "pids", "pids.max") }

func ptr[T any](v T) *T { return &v }

func TestAProcessIsBornInTheCgroupAndListed(t *testing.T) {
	c := made(t, nil)
	if pids, err := c.Pids(); err != nil || len(pids) != 0 {
		t.Fatalf("pids %v, %v: want none", pids, err)
	}
	pid, _ := sleeper(t, c)
	if pids, err := c.Pids(); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("pids %v, %v: want %d", pids, err, pid)
	}
	again, err := New(c.name, "", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Create(); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one of the same path: %v", err)
	}
	if err := again.Destroy(); err != nil {
		t.Error(err)
	}
	if pids, err := c.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("pids %v, %v: the cgroup of another was destroyed", pids, err)
	}
}

// The race detector is what looks.
func TestCgroupsAreMadeAtTheSameTime(t *testing.T) {
	needRoot(t)
	limit := int64(100)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { made(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}) })
	}
	all.Wait()
}

func TestEveryProcessIsKilledFrozenOrNot(t *testing.T) {
	for name, freeze := range map[string]bool{"running": false, "frozen": true} {
		t.Run(name, func(t *testing.T) {
			c := made(t, nil)
			_, first := sleeper(t, c)
			_, second := sleeper(t, c)
			if freeze {
				if err := c.Freeze(); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Kill(); err != nil {
				t.Fatal(err)
			}
			<-first
			<-second
			if pids, err := c.Pids(); err != nil || len(pids) != 0 {
				t.Errorf("pids %v, %v: want none", pids, err)
			}
		})
	}
}

// The way back is there as the thread goes in, and is gone when it is needed.
func TestAThreadThatCannotComeBackHoldsUpNothingOnceItHasEnded(t *testing.T) {
	c := made(t, nil)
	if cgroups.IsCgroup2UnifiedMode() {
		return // no thread goes in
	}
	back := filepath.Join("/sys/fs/cgroup/memory", "back-"+filepath.Base(c.name))
	if err := os.Mkdir(back, 0o755); err != nil {
		t.Fatal(err)
	}
	home.Lock()
	own := home.paths
	home.paths = map[string]string{"memory": back}
	home.Unlock()
	t.Cleanup(func() {
		home.Lock()
		home.paths = own
		home.Unlock()
	})
	started := false
	failed := make(chan error)
	var onThread func()
	onThread = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		if unix.Gettid() == unix.Getpid() {
			go onThread()
			select {} // the main thread would not end
		}
		failed <- c.StartIn(&syscall.SysProcAttr{}, func() error { started = true; return os.Remove(back) })
	}
	go onThread()
	if err := <-failed; err == nil || !started || !strings.Contains(err.Error(), "back to own cgroup") {
		t.Errorf("got %v, started %v", err, started)
	}
	if err := c.Destroy(); err != nil {
		t.Error(err)
	}
}

func TestNoProcessIsBornInAFrozenCgroup(t *testing.T) {
	c := made(t, nil)
	pid, _ := sleeper(t, c)
	if err := c.Freeze(); err != nil {
		t.Fatal(err)
	}
	err := c.StartIn(&syscall.SysProcAttr{}, func() error { t.Error("started"); return nil })
	if err == nil {
		t.Error("no error")
	}
	if err := c.Thaw(); err != nil {
		t.Fatal(err)
	}
	more, _ := sleeper(t, c)
	if pids, err := c.Pids(); err != nil || !slices.Equal(pids, []int{pid, more}) {
		t.Errorf("pids %v, %v: want %d and %d", pids, err, pid, more)
	}
}

func TestAnUpdateChangesWhatItGivesAndNothingElse(t *testing.T) {
	c := made(t, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20)}, Pids: &specs.LinuxPids{Limit: ptr[int64](50)},
		CPU: &specs.LinuxCPU{Quota: ptr[int64](50000), Period: ptr[uint64](100000)},
	})
	sleeper(t, c)
	quota := limit(t, c, "cpu.max", "cpu", "cpu.cfs_quota_us")
	if err := c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](128 << 20)}}); err != nil {
		t.Fatal(err)
	}
	if got, want := memoryLimit(t, c), fmt.Sprint(128<<20); got != want {
		t.Errorf("memory limit %s, want %s", got, want)
	}
	if err := c.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](60)}}); err != nil {
		t.Fatal(err)
	}
	if got, want := memoryLimit(t, c), fmt.Sprint(128<<20); got != want {
		t.Errorf("memory limit %s, want %s", got, want)
	}
	if got := pidsLimit(t, c); got != "60" {
		t.Errorf("pids limit %s, want 60", got)
	}
	if got := limit(t, c, "cpu.max", "cpu", "cpu.cfs_quota_us"); got != quota {
		t.Errorf("quota %s, want %s", got, quota)
	}
	// No limit at all.
	if err := c.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}, Memory: &specs.LinuxMemory{Limit: ptr[int64](-1)}}); err != nil {
		t.Fatal(err)
	}
	if got := pidsLimit(t, c); got != "max" {
		t.Errorf("pids limit %s, want max", got)
	}
}

func TestARefusedUpdateLeavesTheOldLimits(t *testing.T) {
	for name, first := range map[string]*specs.LinuxResources{
		"that were set":       {Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20)}, Pids: &specs.LinuxPids{Limit: ptr[int64](50)}},
		"that were never set": nil,
	} {
		t.Run(name, func(t *testing.T) {
			c := made(t, first)
			sleeper(t, c)
			memory, pids := memoryLimit(t, c), pidsLimit(t, c)
			before := *c.config.Resources
			// Each good but for the last to be written: there is no CPU 4000.
			for _, bad := range []*specs.LinuxResources{
				{Memory: &specs.LinuxMemory{Limit: ptr[int64](128 << 20)}, Pids: &specs.LinuxPids{Limit: ptr[int64](60)}, CPU: &specs.LinuxCPU{Cpus: "4000"}},
				{Memory: &specs.LinuxMemory{Limit: ptr[int64](128 << 20)}, CPU: &specs.LinuxCPU{Quota: ptr[int64](1), Period: ptr[uint64](1)}},
				{Memory: &specs.LinuxMemory{Limit: ptr[int64](128 << 20)}, Pids: &specs.LinuxPids{Limit: ptr[int64](60)}, Unified: map[string]string{"no.such": "1"}},
			} {
				if err := c.Update(bad); err == nil {
					t.Error("no error")
				}
				if got := memoryLimit(t, c); got != memory {
					t.Errorf("memory limit %s, want %s", got, memory)
				}
				if got := pidsLimit(t, c); got != pids {
					t.Errorf("pids limit %s, want %s", got, pids)
				}
				now := *c.config.Resources
				if now.Memory != before.Memory || now.CpusetCpus != before.CpusetCpus || now.CpuPeriod != before.CpuPeriod || now.PidsLimit != before.PidsLimit {
					t.Errorf("limits %+v, want %+v", now, before)
				}
			}
			// It holds nothing that a later one would trip over.
			if err := c.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](70)}}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheDriverOfSystemdIsToldByThePath(t *testing.T) {
	for path, want := range map[string]bool{
		"":                              false,
		"/test/id":                      false,
		"system.slice:nerdctl:id":       true,
		":nerdctl:id":                   true,
		"a-b.slice:cri-containerd:0123": true,
		"/x.slice":                      false,
		"system.slice/x.scope":          false,
		"x:y":                           false,
		"x.slice:y":                     false,
		"x:y:z":                         false,
		"x.slice:y:z:":                  false,
	} {
		if got := IsScope(path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
	for path, want := range map[string]string{
		"":                        " wazero the-id",
		"system.slice:nerdctl:id": "system.slice nerdctl id",
		":p:id":                   " p id",
		"odd:p:id":                "odd p id",
		"/test/id":                "error",
		"a.slice:b:":              "error",
		"a.slice:../b:c":          "error",
		"a.slice:b:../c":          "error",
	} {
		config := &cgroups.Cgroup{}
		got := "error"
		if err := scope(config, path, "the-id"); err == nil {
			got = config.Parent + " " + config.ScopePrefix + " " + config.Name
		}
		if got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestWithoutSystemdItsDriverIsAnError(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Log("there is a systemd, and another test for it")
		return
	}
	for _, path := range []string{"system.slice:nerdctl:id", ""} {
		if _, err := New(path, "id", nil, path == ""); err == nil || !strings.Contains(err.Error(), "systemd not running") {
			t.Errorf("%q: error %v: want one that says that systemd is not running", path, err)
		}
	}
}

func TestAKeeperWaitsUntilItIsKilledAndHeedsNoOtherSignal(t *testing.T) {
	needRoot(t)
	// What a process is started with need not be closed at an exec.
	inherited, err := unix.Open("/", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	k, err := startKeeper()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan *os.ProcessState)
	go func() {
		state, _ := k.Wait() // nil says enough
		ended <- state
	}()
	// Once it waits: before, it is like any other process.
	status := func() string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for !strings.Contains(status(), "SigBlk:\tfffffffffffbfeff") { // all but SIGKILL and SIGSTOP
		time.Sleep(time.Millisecond)
	}
	for sig := syscall.Signal(1); sig < 65; sig++ {
		if sig != unix.SIGKILL && sig != unix.SIGSTOP {
			if err := k.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", k.Pid)); err != nil || len(fds) != 0 {
		t.Errorf("it holds %v open, %v", fds, err)
	}
	if s := status(); !strings.Contains(s, "\nThreads:\t1\n") || !strings.Contains(s, "State:\tS") {
		t.Errorf("not one thread that sleeps:\n%s", s)
	}
	if err := k.Kill(); err != nil {
		t.Fatal(err)
	}
	if state := <-ended; state == nil || state.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("ended: %v", state)
	}
}
