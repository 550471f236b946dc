package shim

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
)

// A place that a thread does not come back from.
type oneWay struct{ pid *int }

var errNoWayBack = errors.New("no way back")

func (o oneWay) StartIn(_ *syscall.SysProcAttr, start func() error) error {
	*o.pid = unix.Gettid()
	return errors.Join(start(), errNoWayBack)
}

// A panic was what this used to be, and the end of every container of the pod.
func TestAProcessWhoseParentIsStrandedIsEndedAndNoOther(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TEST_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, for mount namespaces: run `sudo make test`")
	}
	reapChildren(t)
	program, err := filepath.Abs("../../bin/containerd-shim-wazero-v1") // the one of this test needs a loader
	if err != nil {
		t.Fatal(err)
	}
	stage, err := sandbox.NewStage(program, programName(instance.RoleInstance))
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	start := func(place sandbox.Birthplace) (*child, error) {
		walls, err := sandbox.NewWalls(stage, sandbox.Config{Program: programName(instance.RoleInstance), Base: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(walls.Close)
		return startChild(t.Context(), instance.RoleInstance, instance.Config{}, 0, walls, place, [3]*os.File{})
	}
	other, err := start(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.destroy()
	before := children(t)
	var thread int
	if _, err := start(oneWay{&thread}); !errors.Is(err, errNoWayBack) {
		t.Errorf("got %v", err)
	}
	if after := children(t); len(after) != len(before) {
		t.Errorf("children were %v and are %v", before, after)
	}
	if err := unix.Tgkill(os.Getpid(), thread, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the thread is still there: %v", err)
	}
	if err := other.kill(0); err != nil {
		t.Errorf("another process: %v", err)
	}
}

func children(t *testing.T) (pids []string) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		if data, err := os.ReadFile(list); err == nil && len(data) > 0 {
			pids = append(pids, string(data))
		}
	}
	return pids
}
