package shim

import (
	"context"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// tracedService makes a span of every operation on a container, in the one trace
// that the container has:
//
//   - the trace of Create's caller, when it sent a context;
//   - else, for the first container, that of the TRACECONTEXT of `start`;
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
	identify  func(id string) []attribute.KeyValue
	first     sync.Once
	boot      telemetry.Boot

	mu    sync.Mutex
	roots map[string]trace.SpanContext // guarded by mu; by container, the parent of its spans
}

// newTracedService traces the containers of s. What is to be said of each, s adds to
// the context of its Create, and after that identify knows it.
func newTracedService(s taskapi.TTRPCTaskService, provider trace.TracerProvider, namespace string, identify func(id string) []attribute.KeyValue, boot telemetry.Boot) *tracedService {
	return &tracedService{
		TTRPCTaskService: s, provider: provider, namespace: namespace, identify: identify, boot: boot, roots: map[string]trace.SpanContext{},
	}
}

// withCaller is ctx with the span that the client sent, if it did, in a form that
// OTEL_PROPAGATORS names.
func withCaller(ctx context.Context) context.Context {
	md, _ := ttrpc.GetMetadata(ctx)
	headers := make(map[string]string, len(md))
	for k, v := range md {
		headers[strings.ToLower(k)] = strings.Join(v, ",")
	}
	return telemetry.ExtractCaller(ctx, headers)
}

func (t *tracedService) start(ctx context.Context, name, id, execID string, links ...trace.Link) (context.Context, trace.Span) {
	attrs := append([]attribute.KeyValue{
		telemetry.ContainerID.String(telemetry.Text(id)), telemetry.ContainerdNamespace.String(t.namespace),
	}, t.identify(id)...)
	if execID != "" {
		attrs = append(attrs, telemetry.ExecID.String(telemetry.Text(execID)))
	}
	opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithLinks(links...)}
	if c := callOf(ctx); c != nil {
		opts = append(opts, trace.WithAttributes(telemetry.RPCSystemName.String("ttrpc"), telemetry.RPCMethod.String(c.method)))
	}
	return telemetry.StartOperation(telemetry.WithAttributes(ctx, attrs...), t.provider, name, opts...)
}

// end ends the span of a call with the result err.
func end(span trace.Span, err error) {
	span.SetAttributes(telemetry.RPCResponseStatusCode.String(telemetry.StatusCode(err)))
	telemetry.End(span, err)
}

// traced makes a call in a span of the container's trace, to which stages may add.
// Tell, which may be nil, has the span say what came of it.
func traced[Request, Response any](ctx context.Context, t *tracedService, name, id, execID string, r *Request,
	call func(context.Context, *Request) (*Response, error), tell func(trace.Span, *Response),
) (resp *Response, err error) {
	ctx = withCaller(ctx)
	theirs := trace.SpanContextFromContext(ctx)
	t.mu.Lock()
	ours, known := t.roots[id]
	t.mu.Unlock()
	octx := ctx
	elsewhere := known && ours.TraceID() != theirs.TraceID()
	if elsewhere {
		octx = trace.ContextWithRemoteSpanContext(ctx, ours)
	}
	began := time.Now()
	octx, span := t.start(octx, name, id, execID)
	err = errPanic // until there is an answer
	defer func() {
		end(span, err)
		telemetry.Measure(octx, name, began, err)
	}()
	if elsewhere && theirs.IsValid() {
		_, theirSpan := t.start(ctx, name, id, execID, trace.Link{SpanContext: span.SpanContext()})
		span.AddLink(trace.Link{SpanContext: theirSpan.SpanContext()})
		defer func() { end(theirSpan, err) }()
	}
	if resp, err = call(octx, r); err == nil && tell != nil {
		tell(span, resp)
	}
	return resp, err
}

func (t *tracedService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (resp *taskapi.CreateTaskResponse, err error) {
	ctx = withCaller(ctx)
	t.first.Do(func() { ctx = telemetry.StartShim(ctx, t.provider, t.boot) })
	root := trace.SpanContextFromContext(ctx)
	began := time.Now()
	ctx, span := t.start(ctx, telemetry.TaskCreate, r.ID, "")
	if !root.IsValid() {
		root = span.SpanContext()
	}
	err = errPanic // until there is an answer
	defer func() {
		end(span, err)
		telemetry.Measure(ctx, telemetry.TaskCreate, began, err)
	}()
	if resp, err = t.TTRPCTaskService.Create(ctx, r); err == nil {
		span.SetAttributes(telemetry.ProcessPID.Int(int(resp.Pid)))
	}
	t.mu.Lock()
	// One that failed is followed by containerd's Delete; unless it failed because
	// there is a container of that id.
	if _, known := t.roots[r.ID]; err == nil || !known {
		t.roots[r.ID] = root
	}
	t.mu.Unlock()
	return resp, err
}

func (t *tracedService) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return traced(ctx, t, telemetry.TaskStart, r.ID, r.ExecID, r, t.TTRPCTaskService.Start, func(span trace.Span, resp *taskapi.StartResponse) {
		span.SetAttributes(telemetry.ProcessPID.Int(int(resp.Pid)))
	})
}

func (t *tracedService) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	return traced(ctx, t, telemetry.TaskWait, r.ID, r.ExecID, r, t.TTRPCTaskService.Wait, func(span trace.Span, resp *taskapi.WaitResponse) {
		span.SetAttributes(telemetry.ProcessExitCode.Int(int(resp.ExitStatus)))
		span.AddEvent(telemetry.EventExit, trace.WithTimestamp(resp.ExitedAt.AsTime()))
	})
}

func (t *tracedService) Kill(ctx context.Context, r *taskapi.KillRequest) (*ptypes.Empty, error) {
	kill := func(ctx context.Context, r *taskapi.KillRequest) (*ptypes.Empty, error) {
		trace.SpanFromContext(ctx).SetAttributes(telemetry.KillSignal.Int(int(r.Signal))) // also of one that fails
		return t.TTRPCTaskService.Kill(ctx, r)
	}
	return traced(ctx, t, telemetry.TaskKill, r.ID, r.ExecID, r, kill, nil)
}

func (t *tracedService) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	return traced(ctx, t, telemetry.TaskExec, r.ID, r.ExecID, r, t.TTRPCTaskService.Exec, nil)
}

func (t *tracedService) Pause(ctx context.Context, r *taskapi.PauseRequest) (*ptypes.Empty, error) {
	return traced(ctx, t, telemetry.TaskPause, r.ID, "", r, t.TTRPCTaskService.Pause, nil)
}

func (t *tracedService) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*ptypes.Empty, error) {
	return traced(ctx, t, telemetry.TaskResume, r.ID, "", r, t.TTRPCTaskService.Resume, nil)
}

func (t *tracedService) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*ptypes.Empty, error) {
	return traced(ctx, t, telemetry.TaskUpdate, r.ID, "", r, t.TTRPCTaskService.Update, nil)
}

func (t *tracedService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := traced(ctx, t, telemetry.TaskDelete, r.ID, r.ExecID, r, t.TTRPCTaskService.Delete, func(span trace.Span, resp *taskapi.DeleteResponse) {
		span.SetAttributes(telemetry.ProcessPID.Int(int(resp.Pid)), telemetry.ProcessExitCode.Int(int(resp.ExitStatus)))
	})
	if r.ExecID == "" && (err == nil || errdefs.IsNotFound(err)) {
		t.mu.Lock()
		delete(t.roots, r.ID)
		t.mu.Unlock()
	}
	return resp, err
}
