package instance

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/tetratelabs/wazero/sys"
)

func TestTheGuestsExitCodeBecomesAStatusOf8Bits(t *testing.T) {
	trap := errors.New("wasm error: unreachable")
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"a return", nil, 0},
		{"proc_exit(0)", sys.NewExitError(0), 0},
		{"proc_exit(1)", sys.NewExitError(1), 1},
		{"proc_exit(137)", sys.NewExitError(137), 137},
		{"the largest", sys.NewExitError(255), 255},
		{"256 does not look like success", sys.NewExitError(256), 255},
		{"512 does not look like success", sys.NewExitError(512), 255},
		{"-1", sys.NewExitError(0xffffffff), 255},
		{"a wrapped exit", fmt.Errorf("call: %w", sys.NewExitError(3)), 3},
		{"a trap", trap, 134},
		{"a wrapped trap", fmt.Errorf("call: %w", trap), 134},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := exitStatus(tt.err); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestAnExitIsNoFailureWhateverItsCode(t *testing.T) {
	for _, err := range []error{nil, sys.NewExitError(0), sys.NewExitError(1), fmt.Errorf("call: %w", sys.NewExitError(7))} {
		if got := asFailure(err); got != nil {
			t.Errorf("%v: got %v, want nil", err, got)
		}
	}
	for _, want := range []error{errors.New("unreachable"), context.Canceled} {
		if got := asFailure(want); !errors.Is(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
