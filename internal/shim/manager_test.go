package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/cgroup"
)

// A Create that finds its cgroup in use fails, and `delete` follows.
func TestADeleteKillsOnlyWhatItsContainerHasStarted(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TEST_ROOT") != "" || os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: run `sudo make test`")
	}
	path := fmt.Sprintf("/wazero-test-delete-%d", time.Now().UnixNano())
	others, err := cgroup.New(path, "", nil, false)
	if err == nil {
		err = others.Create()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(others.Kill(), others.Destroy()) })
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	runtime.LockOSThread()
	err = others.StartIn(cmd.SysProcAttr, cmd.Start)
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })

	bundle := writeConfig(t, `{`+goodProcess+`,`+goodRoot+`,"linux":{"cgroupsPath":"`+path+`"}}`)
	if err := removeCgroup(bundle, "c1"); err == nil {
		t.Error("a cgroup in use was removed")
	}
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Fatalf("the process of another: %v", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, pidFile), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeCgroup(bundle, "c1"); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("its own process lives on")
	}
}

func TestTheRootOfAllCgroupsIsNoContainers(t *testing.T) {
	for _, path := range []string{"/", "/..", "../..", ".", "//", "/a/.."} {
		bundle := writeConfig(t, `{`+goodProcess+`,`+goodRoot+`,"linux":{"cgroupsPath":"`+path+`"}}`)
		b, err := loadBundle(bundle)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := b.cgroup("c1", false); err == nil {
			t.Errorf("%q: got %v, want an error", path, c.Paths())
		} else {
			invalid(t, err, path)
		}
	}
}
