package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

const traceContext = "io.containerd.wazero.v1/trace-context"

func TestAGuestMakesSpansByEachOfTheBindings(t *testing.T) {
	n := useNode(t)
	for _, lang := range []string{"go", "c", "rust"} {
		t.Run(lang, func(t *testing.T) {
			b, status := run(t, n, app(t, n, "observe-"+lang+".wasm"), args("/app.wasm"),
				oci.WithAnnotations(map[string]string{traceContext: "true"}))
			s := trace(t, spans, b.ID(), "task.delete", "module.run", "work", "step")
			run, work, step := s["module.run"], s["work"], s["step"]
			if want := fmt.Sprintf("observed 00-%s-%s-01\n", run.TraceID, run.ID); status != 0 || b.stdout.String() != want {
				t.Errorf("status %d, %q, want %q", status, b.stdout, want)
			}
			if work.Parent != run.ID || step.Parent != work.ID || run.Parent != s["task.start"].ID {
				t.Errorf("got\n%s", collector.Tree(spans.Trace(run.TraceID)))
			}
			if work.Attrs["lang"] != lang || work.Attrs["kind"] != "test" || len(step.Attrs) != 1 || step.Attrs["container.id"] != b.ID() {
				t.Errorf("work: %v, step: %v", work.Attrs, step.Attrs)
			}
			for _, s := range []collector.Span{work, step} {
				if s.Start.Before(run.Start) || s.End.After(run.End) || s.End.Before(s.Start) || s.Failed {
					t.Errorf("%s: %v to %v, the run %v to %v", s.Name, s.Start, s.End, run.Start, run.End)
				}
			}
			if step.Start.Before(work.Start) || step.End.After(work.End) {
				t.Errorf("step: %v to %v, work: %v to %v", step.Start, step.End, work.Start, work.End)
			}
		})
	}
}

func TestAGuestIsToldItsTraceOnlyIfItAsks(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "probe.wasm")
	annotation := func(v string) oci.SpecOpts { return oci.WithAnnotations(map[string]string{traceContext: v}) }
	for name, tt := range map[string]struct {
		opts []oci.SpecOpts
		told bool
	}{
		"nothing":                           {nil, false},
		"an annotation":                     {[]oci.SpecOpts{annotation("true")}, true},
		"a variable":                        {[]oci.SpecOpts{oci.WithEnv([]string{"WAZERO_TRACE_CONTEXT=true"})}, true},
		"an annotation, and a variable off": {[]oci.SpecOpts{annotation("true"), oci.WithEnv([]string{"WAZERO_TRACE_CONTEXT=false"})}, false},
		"an annotation off":                 {[]oci.SpecOpts{annotation("false")}, false},
		"baggage of its own":                {[]oci.SpecOpts{annotation("true"), oci.WithEnv([]string{"BAGGAGE=a=b"})}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b, status := run(t, n, img, append(tt.opts, args("/app.wasm", "env"))...)
			s := trace(t, spans, b.ID(), "module.run")["module.run"]
			want := ""
			if tt.told {
				want = fmt.Sprintf("env: TRACEPARENT=00-%s-%s-01\n", s.TraceID, s.ID)
			}
			out := b.stdout.String()
			if status != 0 || !strings.Contains(out, want) || !tt.told && (strings.Contains(out, "TRACE") && !strings.Contains(out, "WAZERO_TRACE_CONTEXT=false")) || strings.Count(out, "TRACEPARENT") > 1 {
				t.Errorf("status %d, %q, want %q", status, out, want)
			}
		})
	}
	t.Run("an exec", func(t *testing.T) {
		b := idle(t, n, annotation("true"))
		e, status := b.runExec(t, "told", nil, "/app.wasm", "env")
		_, told, _ := strings.Cut(e.stdout.String(), "env: TRACEPARENT=00-")
		life := trace(t, spans, b.ID(), "task.exec", "task.start", "module.run")
		eventually(t, "the run that the guest was told of", func() bool {
			return slices.ContainsFunc(spans.Trace(life["task.create"].TraceID), func(s collector.Span) bool {
				return s.Name == "module.run" && strings.HasPrefix(told, s.TraceID+"-"+s.ID+"-01\n")
			})
		})
		if status != 0 {
			t.Errorf("status %d, %q", status, e.stdout)
		}
	})
	for name, opt := range map[string]oci.SpecOpts{traceContext: annotation("maybe"), "WAZERO_TRACE_CONTEXT": oci.WithEnv([]string{"WAZERO_TRACE_CONTEXT=maybe"})} {
		t.Run("neither true nor false: "+name, func(t *testing.T) {
			b := container(t, n, img, args("/app.wasm"), opt)
			wantError(t, b.create(), nil, name, "maybe")
		})
	}
}

// The functions are there without a trace as well, and do nothing.
func TestWithoutATraceAGuestThatMakesSpansRunsAsEver(t *testing.T) {
	n := newNode(t, options())
	for _, lang := range []string{"go", "c", "rust"} {
		b, status := run(t, n, app(t, n, "observe-"+lang+".wasm"), args("/app.wasm"), oci.WithAnnotations(map[string]string{traceContext: "true"}))
		if status != 0 || b.stdout.String() != "observed \n" {
			t.Errorf("%s: status %d, %q, %q", lang, status, b.stdout, b.stderr)
		}
	}
}
