package shim

import (
	"errors"
	"slices"
	"testing"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

var phases = []phase{created, starting, running, pausing, paused, stopped, deleting, deleted}

func TestAProcessOnlyMakesLegalMoves(t *testing.T) {
	legal := map[phase][]phase{
		created:  {starting, stopped, deleting},
		starting: {created, running, stopped},
		running:  {pausing, stopped},
		pausing:  {paused, running, stopped},
		paused:   {running, stopped},
		stopped:  {deleting},
		deleting: {stopped, deleted},
	}
	for _, from := range phases {
		for _, to := range append(phases, "nonsense") {
			t.Run(string(from+" to "+to), func(t *testing.T) {
				p := from
				err := p.to(to)
				if slices.Contains(legal[from], to) {
					if err != nil || p != to {
						t.Errorf("got %s, %v, want %s", p, err, to)
					}
					return
				}
				want := error(errdefs.ErrFailedPrecondition)
				if from == deleting || from == deleted {
					want = errdefs.ErrNotFound
				}
				if !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
				if p != from {
					t.Errorf("the move was refused, and made: %s", p)
				}
			})
		}
	}
}

func TestAClientSeesAPhaseOnceItIsReached(t *testing.T) {
	want := map[phase]tasktypes.Status{
		created: tasktypes.Status_CREATED, starting: tasktypes.Status_CREATED, running: tasktypes.Status_RUNNING,
		pausing: tasktypes.Status_PAUSING, paused: tasktypes.Status_PAUSED,
		stopped: tasktypes.Status_STOPPED, deleting: tasktypes.Status_STOPPED, deleted: tasktypes.Status_UNKNOWN,
	}
	for _, p := range phases {
		if got := p.status(); got != want[p] {
			t.Errorf("%s: got %v, want %v", p, got, want[p])
		}
	}
}
