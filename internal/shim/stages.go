package shim

import (
	"context"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// Stages that a [telemetry.Stage] around some code does not cover.

var stepSpans = map[string]string{
	sandbox.StepFollow: telemetry.SandboxFollow, sandbox.StepClone: telemetry.SandboxClone, sandbox.StepMount: telemetry.SandboxMount,
	sandbox.StepDevices: telemetry.SandboxDevices, sandbox.StepProtect: telemetry.SandboxProtect,
}

// slowStep is how long a step takes that is worth a span of its own: a pod has a
// dozen mounts, of microseconds each.
const slowStep = time.Millisecond

// stepsOf makes spans, below the one of ctx, of the steps that a process's walls
// take, if they fail or take their time.
func stepsOf(ctx context.Context) func(sandbox.Step) {
	return func(s sandbox.Step) {
		if s.Err == nil && time.Since(s.Began) < slowStep {
			return
		}
		var attrs []attribute.KeyValue
		if s.Path != "" {
			attrs = append(attrs, telemetry.MountDestination.String(telemetry.Text(s.Path)))
		}
		telemetry.Past(ctx, stepSpans[s.Name], s.Began, s.Err, attrs...)
	}
}

// moduleSource tells where the module f comes from: the root file system, or what
// is mounted in it. Empty when it cannot be told.
func moduleSource(w *sandbox.Walls, f *os.File) string {
	root, err := w.Open("/", unix.O_PATH)
	if err != nil {
		return ""
	}
	defer root.Close()
	switch same, err := sandbox.SameMount(root, f); {
	case err != nil:
		return ""
	case same:
		return telemetry.ModuleSourceImage
	default:
		return telemetry.ModuleSourceMount
	}
}

// traceExit makes the span of the process's exit, which begins with that and is
// ended when everybody may know of it; and tells the span of its run what has ended
// it.
func (p *process) traceExit(outOfMemory bool) trace.Span {
	p.child.mu.Lock()
	events := p.child.kills
	p.child.mu.Unlock()
	if outOfMemory {
		events = append(events, telemetry.NewEvent(telemetry.EventOOM, p.exit.At))
	}
	ctx, run := p.child.relay.Finish(p.exit.At, p.exit.Status, killedBy(p.exit.Status, p.child.status), events...)
	span := startExit(ctx, run, p.exit)
	if outOfMemory {
		span.AddEvent(telemetry.EventOOM, trace.WithTimestamp(p.exit.At))
	}
	return span
}

// countExit counts the process's exit, if its guest might have run; to be called after
// traceExit.
func (p *process) countExit(outOfMemory bool) {
	p.mu.Lock()
	counted := p.counted
	p.mu.Unlock()
	if counted != nil {
		ended, failed := p.child.relay.Ended()
		counted.Exited(exitReason(p.exit.Status, outOfMemory, ended, failed))
	}
}

// startExit starts a task.exit, of a process whose run may be none.
func startExit(ctx context.Context, run trace.SpanContext, e exitStatus) trace.Span {
	opts := []trace.SpanStartOption{
		trace.WithTimestamp(e.At),
		trace.WithAttributes(telemetry.ProcessPID.Int(e.Pid), telemetry.ProcessExitCode.Int(e.Status)),
	}
	if run.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: run}))
	}
	_, span := telemetry.Start(ctx, telemetry.TaskExit, opts...)
	return span
}
