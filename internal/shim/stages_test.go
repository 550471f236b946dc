package shim

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

func TestAStepIsASpanIfItFailedOrTookItsTime(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	ctx, build := telemetry.StartOperation(context.Background(), provider, telemetry.SandboxBuild)
	told := stepsOf(ctx)
	began := time.Now().Add(-slowStep)
	later := time.Now().Add(time.Hour)
	told(sandbox.Step{Name: sandbox.StepMount, Path: "/slow", Began: began})
	told(sandbox.Step{Name: sandbox.StepMount, Path: "/quick", Began: later})
	told(sandbox.Step{Name: sandbox.StepDevices, Began: later, Err: errors.New("no device")})
	spans := recorder.Ended()
	var names []string
	for _, s := range spans {
		names = append(names, s.Name())
		if s.Parent().SpanID() != build.SpanContext().SpanID() {
			t.Errorf("%s is not below that of the walls", s.Name())
		}
	}
	if want := []string{telemetry.SandboxMount, telemetry.SandboxDevices}; !slices.Equal(names, want) {
		t.Fatalf("got %v, want %v", names, want)
	}
	if got, want := spans[0].Attributes(), []attribute.KeyValue{telemetry.MountDestination.String("/slow")}; !slices.Equal(got, want) || !spans[0].StartTime().Equal(began) {
		t.Errorf("got %v from %v, want %v from %v", got, spans[0].StartTime(), want, began)
	}
	if got, want := spans[1].Status().Description, "no device"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEveryStepHasAName(t *testing.T) {
	for _, step := range []string{sandbox.StepFollow, sandbox.StepClone, sandbox.StepMount, sandbox.StepDevices, sandbox.StepProtect} {
		if stepSpans[step] != "sandbox."+step {
			t.Errorf("%s is %q", step, stepSpans[step])
		}
	}
}
