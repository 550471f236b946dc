package shim

import (
	"context"
	"errors"
	"fmt"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// answering is a service whose calls do what the test says.
type answering struct {
	taskapi.TTRPCTaskService
	answer func() error
}

func (s answering) Create(context.Context, *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	return &taskapi.CreateTaskResponse{}, s.answer()
}

func (s answering) Kill(context.Context, *taskapi.KillRequest) (*ptypes.Empty, error) {
	return &ptypes.Empty{}, s.answer()
}

func TestASpanHasFailedExactlyWhenItsCallHas(t *testing.T) {
	for name, c := range map[string]struct {
		answer            func() error
		status, errorType string
	}{
		"an answer":         {func() error { return nil }, "OK", ""},
		"a class":           {func() error { return fmt.Errorf("container: %w", errdefs.ErrNotFound) }, "NOT_FOUND", "NOT_FOUND"},
		"a caller who left": {func() error { return context.Canceled }, "CANCELLED", "CANCELLED"},
		"no class":          {func() error { return errors.New("boom") }, "UNKNOWN", "*errors.errorString"},
		"a panic":           {func() error { panic("boom") }, "UNKNOWN", "panic"},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
			s := newTracedService(answering{answer: c.answer}, provider, "ns", func(string) []attribute.KeyValue { return nil }, telemetry.Boot{})
			s.first.Do(func() {}) // the start of the shim has been told of
			for _, call := range []func(context.Context) error{
				func(ctx context.Context) error {
					_, err := s.Create(ctx, &taskapi.CreateTaskRequest{ID: "a"})
					return err
				},
				func(ctx context.Context) error { _, err := s.Kill(ctx, &taskapi.KillRequest{ID: "a"}); return err },
			} {
				_, _ = intercepted(func(ctx context.Context, _ func(any) error) (any, error) { return nil, call(ctx) })
			}
			ended := recorder.Ended()
			if len(ended) != 2 {
				t.Fatalf("got %d spans, want 2", len(ended))
			}
			for _, span := range ended {
				got := said(span.Attributes())
				if failed := span.Status().Code == codes.Error; failed != (c.errorType != "") || !failed && span.Status().Code != codes.Unset {
					t.Errorf("%s: status %v", span.Name(), span.Status())
				}
				if errorType, _ := got["error.type"].(string); errorType != c.errorType || got["rpc.response.status_code"] != c.status || got["rpc.method"] != "task/Create" {
					t.Errorf("%s: %v", span.Name(), got)
				}
			}
		})
	}
}
