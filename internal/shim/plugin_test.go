package shim

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// intercepted is what comes of a call of method.
func intercepted(method ttrpc.Method) (any, error) {
	return (&plugin{}).UnaryServerInterceptor()(context.Background(), nil, &ttrpc.UnaryServerInfo{FullMethod: "/task/Create"}, method)
}

func TestAPanicOfAHandlerIsAnErrorOfThatCall(t *testing.T) {
	for name, v := range map[string]any{"a text": "boom", "an error": errors.New("boom"), "a class": errdefs.ErrNotFound} {
		t.Run(name, func(t *testing.T) {
			resp, err := intercepted(func(context.Context, func(any) error) (any, error) { panic(v) })
			if resp != nil || err == nil {
				t.Fatalf("got %v, %v, want an error", resp, err)
			}
			if got := status.Code(err); got == codes.OK || got == codes.NotFound {
				t.Errorf("got %v, want an internal error", got)
			}
		})
	}
	t.Run("a nil pointer", func(t *testing.T) {
		var c *container
		if _, err := intercepted(func(context.Context, func(any) error) (any, error) { return c.id, nil }); err == nil {
			t.Error("got no error")
		}
	})
}

func TestTheClassOfAnErrorIsItsStatus(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{errdefs.ErrNotFound, codes.NotFound},
		{fmt.Errorf("container: %w", errdefs.ErrAlreadyExists), codes.AlreadyExists},
		{fmt.Errorf("a: %w", fmt.Errorf("b: %w", errdefs.ErrInvalidArgument)), codes.InvalidArgument},
		{fmt.Errorf("%w: %w", errors.New("x"), errdefs.ErrInvalidArgument), codes.InvalidArgument},
		{errors.Join(errors.New("x"), errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{invalidTransitionError{created, deleted}, codes.FailedPrecondition},
		{invalidTransitionError{deleted, created}, codes.NotFound},
		{errdefs.ErrNotImplemented, codes.Unimplemented},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{errors.New("whatever"), codes.Unknown},
	} {
		t.Run(fmt.Sprint(tt.err), func(t *testing.T) {
			resp, err := intercepted(func(context.Context, func(any) error) (any, error) { return "answer", tt.err })
			if got := status.Code(err); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if resp != "answer" {
				t.Errorf("got %v, want the answer", resp)
			}
		})
	}
}
