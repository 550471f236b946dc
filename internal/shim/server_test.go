package shim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// intercepted is what comes of a call of method.
func intercepted(method ttrpc.Method) (any, error) {
	return intercept(context.Background(), nil, &ttrpc.UnaryServerInfo{FullMethod: "/task/Create"}, method)
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

// Marshalling the status is what ttrpc does; it hangs up when that fails.
func TestAnyErrorCanBePutOnTheWire(t *testing.T) {
	for name, text := range map[string]string{
		"not UTF-8":             "hook /bin/x: \xff\xfe",
		"half a character":      "hook /bin/x: caf\xc3",
		"very long":             strings.Repeat("é", 4<<20),
		"terminal sequences":    "entry point /\x1b]0;title\x07\x9b31m\u009b31m\r: no such file",
		"of several lines":      "one\n\ttwo",
		"nothing":               "",
		"a NUL":                 "a\x00b",
		"no longer than it may": strings.Repeat("x", maxErrorText-100),
	} {
		for _, class := range []error{errdefs.ErrInvalidArgument, context.Canceled, errors.New("plain")} {
			t.Run(fmt.Sprintf("%s, %v", name, class), func(t *testing.T) {
				_, err := intercepted(func(context.Context, func(any) error) (any, error) { return nil, fmt.Errorf("%s: %w", text, class) })
				s := status.Convert(err)
				data, err := proto.Marshal(s.Proto())
				if err != nil || len(data) > 2*maxErrorText {
					t.Errorf("got %d bytes, %v", len(data), err)
				}
				if got, want := s.Code(), status.Code(toStatus(class)); got != want {
					t.Errorf("got %v, want %v", got, want)
				}
				if strings.ContainsAny(s.Message(), "\x00\x1b\u009b\r") {
					t.Errorf("got %.80q", s.Message())
				}
				if plain := !strings.ContainsAny(text, "\x1b\x00") && utf8.ValidString(text) && len(text) < maxErrorText; plain && !strings.HasPrefix(s.Message(), text) {
					t.Errorf("got %.80q, want %.80q", s.Message(), text)
				}
			})
		}
	}
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
