package shim

import (
	"context"
	"strings"
	"sync"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// tracedService makes a span of every operation on a container, in the one trace
// that the container has:
//
//   - the trace of Create's caller, when it sent a context;
//   - else, for the first container, that of the shim's TRACECONTEXT;
//   - else a new one.
//
// A later call whose caller is in another trace gets a span there too, and the
// two are linked. Calls that only look are not spans.
//
// The service behind it knows of none of this, but that its contexts may have a
// span to put stages under.
type tracedService struct {
	taskapi.TTRPCTaskService
	provider  trace.TracerProvider
	namespace string
	boot      sync.Once

	mu    sync.Mutex
	roots map[string]trace.SpanContext // guarded by mu; by container, the parent of its spans
}

func newTracedService(s taskapi.TTRPCTaskService, provider trace.TracerProvider, namespace string) *tracedService {
	return &tracedService{TTRPCTaskService: s, provider: provider, namespace: namespace, roots: map[string]trace.SpanContext{}}
}

// withCaller is ctx with the span that the client sent, if it did.
func withCaller(ctx context.Context) context.Context {
	md, _ := ttrpc.GetMetadata(ctx)
	headers := make(map[string]string, len(md))
	for k, v := range md {
		headers[strings.ToLower(k)] = strings.Join(v, ",")
	}
	return telemetry.ExtractHeaders(ctx, headers)
}

func (t *tracedService) start(ctx context.Context, name, id, execID string, links ...trace.Link) (context.Context, trace.Span) {
	ctx, span := telemetry.StartOperation(ctx, t.provider, name,
		trace.WithSpanKind(trace.SpanKindServer), trace.WithLinks(links...),
		trace.WithAttributes(telemetry.ContainerID.String(id), telemetry.ContainerdNamespace.String(t.namespace)))
	if execID != "" {
		span.SetAttributes(telemetry.ExecID.String(execID))
	}
	return ctx, span
}

// operation runs f in a span of the container's trace, which f may add to.
func (t *tracedService) operation(ctx context.Context, name, id, execID string, f func(context.Context, trace.Span) error) error {
	ctx = withCaller(ctx)
	theirs := trace.SpanContextFromContext(ctx)
	t.mu.Lock()
	ours, known := t.roots[id]
	t.mu.Unlock()
	if !known || ours.TraceID() == theirs.TraceID() {
		ctx, span := t.start(ctx, name, id, execID)
		err := f(ctx, span)
		telemetry.End(span, err)
		return err
	}
	octx, span := t.start(trace.ContextWithRemoteSpanContext(ctx, ours), name, id, execID)
	call := trace.Span(nil)
	if theirs.IsValid() {
		_, call = t.start(ctx, name, id, execID, trace.Link{SpanContext: span.SpanContext()})
		span.AddLink(trace.Link{SpanContext: call.SpanContext()})
	}
	err := f(octx, span)
	if call != nil {
		telemetry.End(call, err)
	}
	telemetry.End(span, err)
	return err
}

func (t *tracedService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (resp *taskapi.CreateTaskResponse, err error) {
	ctx = withCaller(ctx)
	t.boot.Do(func() { ctx = telemetry.StartShim(ctx, t.provider) })
	root := trace.SpanContextFromContext(ctx)
	ctx, span := t.start(ctx, telemetry.TaskCreate, r.ID, "")
	if !root.IsValid() {
		root = span.SpanContext()
	}
	resp, err = t.TTRPCTaskService.Create(ctx, r)
	if err == nil {
		span.SetAttributes(telemetry.ProcessPID.Int(int(resp.Pid)))
		t.mu.Lock()
		t.roots[r.ID] = root
		t.mu.Unlock()
	}
	telemetry.End(span, err)
	return resp, err
}

func (t *tracedService) Start(ctx context.Context, r *taskapi.StartRequest) (resp *taskapi.StartResponse, err error) {
	err = t.operation(ctx, telemetry.TaskStart, r.ID, r.ExecID, func(ctx context.Context, span trace.Span) error {
		if resp, err = t.TTRPCTaskService.Start(ctx, r); err == nil {
			span.SetAttributes(telemetry.ProcessPID.Int(int(resp.Pid)))
		}
		return err
	})
	return resp, err
}

func (t *tracedService) Wait(ctx context.Context, r *taskapi.WaitRequest) (resp *taskapi.WaitResponse, err error) {
	err = t.operation(ctx, telemetry.TaskWait, r.ID, r.ExecID, func(ctx context.Context, span trace.Span) error {
		if resp, err = t.TTRPCTaskService.Wait(ctx, r); err == nil {
			span.SetAttributes(telemetry.ProcessExitCode.Int(int(resp.ExitStatus)))
		}
		return err
	})
	return resp, err
}

func (t *tracedService) Kill(ctx context.Context, r *taskapi.KillRequest) (resp *ptypes.Empty, err error) {
	err = t.operation(ctx, telemetry.TaskKill, r.ID, r.ExecID, func(ctx context.Context, span trace.Span) error {
		span.SetAttributes(telemetry.KillSignal.Int(int(r.Signal)))
		resp, err = t.TTRPCTaskService.Kill(ctx, r)
		return err
	})
	return resp, err
}

func (t *tracedService) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (resp *ptypes.Empty, err error) {
	err = t.operation(ctx, telemetry.TaskExec, r.ID, r.ExecID, func(ctx context.Context, _ trace.Span) error {
		resp, err = t.TTRPCTaskService.Exec(ctx, r)
		return err
	})
	return resp, err
}

func (t *tracedService) Pause(ctx context.Context, r *taskapi.PauseRequest) (resp *ptypes.Empty, err error) {
	err = t.operation(ctx, telemetry.TaskPause, r.ID, "", func(ctx context.Context, _ trace.Span) error {
		resp, err = t.TTRPCTaskService.Pause(ctx, r)
		return err
	})
	return resp, err
}

func (t *tracedService) Resume(ctx context.Context, r *taskapi.ResumeRequest) (resp *ptypes.Empty, err error) {
	err = t.operation(ctx, telemetry.TaskResume, r.ID, "", func(ctx context.Context, _ trace.Span) error {
		resp, err = t.TTRPCTaskService.Resume(ctx, r)
		return err
	})
	return resp, err
}

func (t *tracedService) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (resp *ptypes.Empty, err error) {
	err = t.operation(ctx, telemetry.TaskUpdate, r.ID, "", func(ctx context.Context, _ trace.Span) error {
		resp, err = t.TTRPCTaskService.Update(ctx, r)
		return err
	})
	return resp, err
}

func (t *tracedService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (resp *taskapi.DeleteResponse, err error) {
	err = t.operation(ctx, telemetry.TaskDelete, r.ID, r.ExecID, func(ctx context.Context, span trace.Span) error {
		if resp, err = t.TTRPCTaskService.Delete(ctx, r); err == nil {
			span.SetAttributes(telemetry.ProcessPID.Int(int(resp.Pid)), telemetry.ProcessExitCode.Int(int(resp.ExitStatus)))
			if r.ExecID == "" {
				t.mu.Lock()
				delete(t.roots, r.ID)
				t.mu.Unlock()
			}
		}
		return err
	})
	return resp, err
}
