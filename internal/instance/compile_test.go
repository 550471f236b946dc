package instance

import (
	"strings"
	"testing"
	"time"
)

func TestTheBoundsOfACompilationGrowWithTheModule(t *testing.T) {
	small, large := NewCompileBounds(0, 8<<30), NewCompileBounds(20<<20, 8<<30)
	if large.Memory <= small.Memory || large.CPU <= small.CPU {
		t.Errorf("%+v and %+v", small, large)
	}
	if err := (CompileBounds{Memory: 1 << 40, CPU: 24 * time.Hour}).exceeded(); err != nil {
		t.Error(err)
	}
	if huge := NewCompileBounds(1<<30, 8<<30); huge.Memory != 8<<30 || huge.CPU > 20*time.Hour {
		t.Errorf("%+v", huge)
	}
}

func TestABoundIsNamedWhenItIsExceeded(t *testing.T) {
	for says, b := range map[string]CompileBounds{
		"1 MiB of memory":      {Memory: 1 << 20, CPU: time.Hour},
		"0s of processor time": {Memory: 1 << 40},
	} {
		if err := b.exceeded(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}
