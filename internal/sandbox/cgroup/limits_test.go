package cgroup

import (
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestALimitIsTheOneInForce(t *testing.T) {
	for _, tt := range []struct {
		name         string
		limits       *specs.LinuxResources
		memory, pids uint64
	}{
		{"none", nil, 0, 0},
		{"0 and -1", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](0)}, Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}}, 0, 0},
		{"-1", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-1)}}, 0, 0},
		{"some", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20)}, Pids: &specs.LinuxPids{Limit: ptr[int64](7)}}, 64 << 20, 7},
		{"8 GiB", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](8 << 30)}}, 8 << 30, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := made(t, tt.limits)
			memory, err := c.MemoryLimit()
			if err != nil || memory != tt.memory {
				t.Errorf("memory: got %d, %v, want %d", memory, err, tt.memory)
			}
			pids, err := c.PidsLimit()
			if err != nil || pids != tt.pids {
				t.Errorf("pids: got %d, %v, want %d", pids, err, tt.pids)
			}
			if err := c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](32 << 20)}}); err != nil {
				t.Fatal(err)
			}
			if memory, err := c.MemoryLimit(); err != nil || memory != 32<<20 {
				t.Errorf("memory: got %d, %v after it was set to 32 MiB", memory, err)
			}
		})
	}
}

func TestARefusedProcessIsCounted(t *testing.T) {
	c := made(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](1)}})
	count := func() uint64 {
		t.Helper()
		n, err := c.PidsRefused()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 0 {
		t.Errorf("%d to begin with", n)
	}
	start := func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.CommandContext(t.Context(), "sleep", "60")
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		err := c.StartIn(cmd.SysProcAttr, cmd.Start)
		if err == nil {
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		}
		return err
	}
	for range 2 { // on version 1 the thread that forks is in there too
		if start() != nil {
			break
		}
	}
	if n := count(); n == 0 {
		t.Error("none, though one was refused")
	}
}
