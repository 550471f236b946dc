package cgroup

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// sharedBy is the cgroup of that name as one process has it.
func sharedBy(t *testing.T, name string, memory int64) *Cgroup {
	t.Helper()
	c, err := NewShared(name, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func isThere(c *Cgroup) bool {
	for _, dir := range c.Paths() {
		if cgroups.PathExists(dir) {
			return true
		}
	}
	return false
}

func TestASharedCgroupIsMadeOnceAndTakenOver(t *testing.T) {
	needRoot(t)
	name := fmt.Sprintf("wazero-test-shared-%d", time.Now().UnixNano())
	first, second, third := sharedBy(t, name, 64<<20), sharedBy(t, name, 128<<20), sharedBy(t, name, 0)
	t.Cleanup(func() {
		if err := sharedBy(t, name, 0).Unshare(); err != nil {
			t.Error(err)
		}
	})
	if err := third.Unshare(); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
	if err := first.Share(); err != nil {
		t.Fatal(err)
	}
	one, ended := sleeper(t, first)
	if err := second.Share(); err != nil {
		t.Fatal(err)
	}
	two, _ := sleeper(t, second)
	if pids, err := second.Pids(); err != nil || len(pids) != 2 {
		t.Errorf("got %v, %v, want %d and %d", pids, err, one, two)
	}
	if got, err := first.MemoryLimit(); err != nil || got != 128<<20 {
		t.Errorf("the limit is %d, %v, want what was set last", got, err)
	}
	// As after a crash of both.
	if err := third.Unshare(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if isThere(third) {
		t.Error("it is still there")
	}
	for range 3 { // and again
		next := sharedBy(t, name, 64<<20)
		if err := next.Share(); err != nil {
			t.Fatal(err)
		}
		if err := sharedBy(t, name, 0).Unshare(); err != nil {
			t.Fatal(err)
		}
		if isThere(next) {
			t.Error("it is still there")
		}
	}
}
