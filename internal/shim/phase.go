package shim

import (
	"fmt"
	"slices"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// A phase is how far a process has come. Entering one once is what makes the
// things that go with it happen exactly once.
type phase string

const (
	created  phase = "created"
	starting phase = "starting" // a Start is in flight; a client sees "created"
	running  phase = "running"
	pausing  phase = "pausing"
	paused   phase = "paused"
	stopped  phase = "stopped"
	deleting phase = "deleting" // a Delete is in flight; a client sees "stopped"
	deleted  phase = "deleted"
)

// transitions are the legal moves.
var transitions = map[phase][]phase{
	created:  {starting, stopped, deleting}, // deleting: only an exec
	starting: {created, running, stopped},   // created: the attempt failed; only an exec's can
	running:  {pausing, stopped},
	pausing:  {paused, running, stopped}, // running: it could not be frozen
	paused:   {running, stopped},
	stopped:  {deleting},
	deleting: {stopped, deleted}, // stopped: something could not be removed; try again
}

// invalidTransitionError is a move that the table does not have.
type invalidTransitionError struct{ from, to phase }

func (e invalidTransitionError) Error() string {
	return fmt.Sprintf("a process that is %s cannot become %s", e.from, e.to)
}

func (e invalidTransitionError) Unwrap() error {
	if e.from == deleted || e.from == deleting {
		return errdefs.ErrNotFound
	}
	return errdefs.ErrFailedPrecondition
}

// to moves p to the next phase, or says why not.
func (p *phase) to(next phase) error {
	if !slices.Contains(transitions[*p], next) {
		return invalidTransitionError{*p, next}
	}
	*p = next
	return nil
}

// status is the phase as containerd knows it.
func (p phase) status() tasktypes.Status {
	switch p {
	case created, starting:
		return tasktypes.Status_CREATED
	case running:
		return tasktypes.Status_RUNNING
	case pausing:
		return tasktypes.Status_PAUSING
	case paused:
		return tasktypes.Status_PAUSED
	case stopped, deleting:
		return tasktypes.Status_STOPPED
	}
	return tasktypes.Status_UNKNOWN
}
