package sandbox

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
)

func TestNoLabelAsksForNothing(t *testing.T) {
	for _, l := range []Labels{{}, {AppArmor: "unconfined"}} {
		if err := (&Config{Labels: l}).Check(); err != nil {
			t.Errorf("%+v: %v", l, err)
		}
		if err := l.verify(os.Getpid()); err != nil {
			t.Errorf("%+v: %v", l, err)
		}
		if got := l.mountOptions(); len(got) != 0 {
			t.Errorf("%+v: got %q for a mount", l, got)
		}
	}
}

func TestALabelThatCannotBeHadIsAnErrorThatNamesIt(t *testing.T) {
	for _, l := range []Labels{{AppArmor: "no-such-profile"}} {
		if err := (&Config{Labels: l}).Check(); err == nil || !strings.Contains(err.Error(), "no-such-profile") {
			t.Errorf("%+v: got %v", l, err)
		}
	}
	if selinux.GetEnabled() {
		t.Skip("SELinux is enabled: what it says of a label is its own")
	}
	for _, l := range []Labels{{SELinux: "u:r:t:s0"}, {Mount: "u:r:t:s0"}} {
		if err := (&Config{Labels: l}).Check(); err == nil || !strings.Contains(err.Error(), "u:r:t:s0") || !strings.Contains(err.Error(), "not enabled") {
			t.Errorf("%+v: got %v", l, err)
		}
	}
}

func TestAnExecIsToldFromAFork(t *testing.T) {
	if executed, err := hasExecuted(os.Getpid()); err != nil || executed {
		t.Errorf("the starter itself: %v, %v", executed, err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for {
		executed, err := hasExecuted(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if executed {
			break
		}
	}
}

func TestANewFileSystemHasTheMountLabel(t *testing.T) {
	if got, want := (Labels{Mount: "u:object_r:t:s0:c1,c2"}).mountOptions(), []string{"context=u:object_r:t:s0:c1,c2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAProcessWithoutItsProfileIsFound(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := (Labels{AppArmor: "gone"}).verify(cmd.Process.Pid); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("got %v", err)
	}
}
