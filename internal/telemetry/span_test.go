package telemetry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
)

func newProvider() (*tracetest.SpanRecorder, *sdktrace.TracerProvider) {
	recorder := tracetest.NewSpanRecorder()
	return recorder, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder), sdktrace.WithIDGenerator(IDGenerator{}))
}

// attrs are the attributes of a span, as a map.
func attrs(span sdktrace.ReadOnlySpan) map[attribute.Key]any {
	m := map[attribute.Key]any{}
	for _, kv := range span.Attributes() {
		m[kv.Key] = kv.Value.AsInterface()
	}
	return m
}

func TestAStageIsASpanBelowItsOperation(t *testing.T) {
	recorder, provider := newProvider()
	ctx, operation := StartOperation(context.Background(), provider, TaskCreate)
	failure := fmt.Errorf("no: %w", errdefs.ErrInvalidArgument)
	err := Stage(ctx, BundleLoad, func(ctx context.Context) error {
		if trace.SpanContextFromContext(ctx).SpanID() == operation.SpanContext().SpanID() {
			t.Error("the stage has the span of its operation")
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	End(operation, nil)
	ended := recorder.Ended()
	if len(ended) != 2 {
		t.Fatalf("got %d spans, want 2", len(ended))
	}
	stage := ended[0]
	if stage.Name() != BundleLoad || stage.Parent().SpanID() != operation.SpanContext().SpanID() {
		t.Errorf("got %s below %s, want %s below %s", stage.Name(), stage.Parent().SpanID(), BundleLoad, operation.SpanContext().SpanID())
	}
	if got, want := stage.Status(), (sdktrace.Status{Code: codes.Error, Description: failure.Error()}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := attrs(stage)[ErrorType], any("INVALID_ARGUMENT"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := ended[1].Status().Code, codes.Unset; got != want {
		t.Errorf("the operation: got %v, want %v", got, want)
	}
}

func TestWithoutASpanAStageOnlyRuns(t *testing.T) {
	ran := false
	err := Stage(context.Background(), BundleLoad, func(ctx context.Context) error {
		ran = true
		if trace.SpanContextFromContext(ctx).IsValid() {
			t.Error("there is a span")
		}
		return nil
	})
	if err != nil || !ran {
		t.Errorf("got %v, ran %v", err, ran)
	}
}

type strangeError struct{}

func (strangeError) Error() string { return "strange" }

func TestTheTypeOfAnErrorIsItsClass(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{context.Canceled, "CANCELLED"},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), "DEADLINE_EXCEEDED"},
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), "NOT_FOUND"},
		{fmt.Errorf("%w: %w", unix.ENOENT, errdefs.ErrInvalidArgument), "INVALID_ARGUMENT"},
		{errdefs.ErrAlreadyExists, "ALREADY_EXISTS"},
		{errdefs.ErrFailedPrecondition, "FAILED_PRECONDITION"},
		{errdefs.ErrNotImplemented, "UNIMPLEMENTED"},
		{fmt.Errorf("write: %w", &os.PathError{Op: "write", Path: "/x", Err: unix.ENOSPC}), "ENOSPC"},
		{fmt.Errorf("x: %w", strangeError{}), reflect.TypeFor[strangeError]().PkgPath() + ".strangeError"},
		{fmt.Errorf("x: %w", errors.New("y")), "*errors.errorString"},
	} {
		if got := ErrorTypeOf(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestWhatAContextSaysIsOnEverySpanBelow(t *testing.T) {
	recorder, provider := newProvider()
	a, b := attribute.String("a", "1"), attribute.String("b", "2")
	ctx := WithAttributes(context.Background(), a)
	ctx, operation := StartOperation(ctx, provider, TaskCreate)
	below := WithAttributes(ctx, b)
	_ = Stage(below, BundleLoad, func(context.Context) error { return nil })
	_ = Stage(ctx, RootfsMount, func(context.Context) error { return nil })
	End(operation, nil)
	for _, span := range recorder.Ended() {
		got, want := attrs(span), map[attribute.Key]any{"a": "1", "b": "2"}
		if span.Name() == RootfsMount {
			delete(want, "b")
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", span.Name(), got, want)
		}
	}
}

func TestAStageThatPanicsHasFailed(t *testing.T) {
	recorder, provider := newProvider()
	ctx, _ := StartOperation(context.Background(), provider, TaskCreate)
	func() {
		defer func() { recover() }() //nolint:errcheck // the test's own
		_ = Stage(ctx, BundleLoad, func(context.Context) error { panic("boom") })
	}()
	if ended := recorder.Ended(); len(ended) != 1 || ended[0].Status().Code != codes.Error {
		t.Errorf("got %v, want one span that failed", ended)
	}
}
