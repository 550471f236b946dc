package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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
			life := trace(t, spans, b.ID(), "task.delete", "module.run", "work", "step")
			run, work, step := life["module.run"], life["work"], life["step"]
			if want := fmt.Sprintf("observed 00-%s-%s-01\n", run.TraceID, run.ID); status != 0 || b.stdout.String() != want {
				t.Errorf("status %d, %q, want %q", status, b.stdout, want)
			}
			if work.Parent != run.ID || step.Parent != work.ID || run.Parent != life["task.start"].ID {
				t.Errorf("got\n%s", collector.Tree(spans.Trace(run.TraceID)))
			}
			if work.Attrs["lang"] != lang || work.Attrs["kind"] != "test" || step.Attrs["lang"] != "" || step.Attrs["container.id"] != b.ID() {
				t.Errorf("work: %v, step: %v", work.Attrs, step.Attrs)
			}
			for _, s := range []collector.Span{work, step} {
				if s.Start.Before(run.Start) || s.End.After(run.End) || s.End.Before(s.Start) || s.Failed {
					t.Errorf("%s: %v to %v, the run %v to %v", s.Name, s.Start, s.End, run.Start, run.End)
				}
			}
			for name, want := range map[string]string{"module.run": "warn before", "step": "info half way"} {
				e := life[name].Events
				if len(e) != 1 || e[0].Name != "log" || e[0].Attrs["wasm.guest.log.level"]+" "+e[0].Attrs["wasm.guest.log.message"] != want {
					t.Errorf("%s: got %v, want %s", name, e, want)
				}
			}
			if _, ok := run.Attrs["wasm.guest.dropped"]; ok {
				t.Errorf("module.run: %v", run.Attrs)
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

// A pod's annotation reaches its containers where containerd's configuration lists it.
func TestAPodAsksForItsTraceByAnAnnotation(t *testing.T) {
	o := options()
	o.CRI = true
	n, c := tracedNode(t, o)
	podImages(t, n)
	for _, asks := range []string{"true", ""} {
		p := newPodOn(t, n)
		if asks != "" {
			p.config.Annotations = map[string]string{traceContext: asks}
		}
		p.up("wazero")
		out := p.finished(probeImage, []string{"env"})
		var id string
		for id = range p.names {
		}
		run := trace(t, c, id, "module.run")["module.run"]
		told := strings.Contains(out, "env: TRACEPARENT=00-"+run.TraceID+"-"+run.ID+"-01\n")
		if told != (asks != "") || !told && strings.Contains(out, "TRACE") {
			t.Errorf("asked %q: got %q", asks, out)
		}
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

// A guest that makes more spans than anybody wants costs itself little, and others
// nothing.
func TestTenThousandSpansOfAGuestAreInNobodysWay(t *testing.T) {
	const many = 10_000
	untraced := newNode(t, options())
	b, want := run(t, untraced, app(t, untraced, "observe-go.wasm"), args("/app.wasm", "spans", fmt.Sprint(many)))
	output := b.stdout.String()
	t.Logf("untraced: %s", b.stderr)
	n, c := tracedNode(t, options(), "OTEL_BSP_SCHEDULE_DELAY=5000")
	grouped := oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)})
	hello := app(t, n, "hello.wasm")
	neighbour := container(t, n, hello, args("/app.wasm"), grouped)
	neighbour.mustCreate(t)
	shim := shimPID(t, n, neighbour.ID())
	img := app(t, n, "observe-go.wasm")
	run(t, n, img, args("/app.wasm", "spans", "1"), grouped) // compiled from now on
	rss := residentKiB(t, shim)
	began := time.Now()
	b, status := run(t, n, img, args("/app.wasm", "spans", fmt.Sprint(many)), grouped)
	if took := time.Since(began); status != want || took > 10*time.Second || b.stdout.String() != output || output != "10000 spans\n" {
		t.Errorf("status %d after %v, %q; untraced %d, %q", status, took, b.stdout, want, output)
	}
	t.Logf("traced: %s", b.stderr)
	if got := residentKiB(t, shim); got > rss+heapKiB(t, 16<<10) {
		t.Errorf("the shim has grown from %d to %d KiB", rss, got)
	}
	neighbour.mustStart(t)
	if status := neighbour.exit(t); status != 0 || neighbour.stdout.String() != "hello\n" {
		t.Errorf("the neighbour: exit status %d, %q", status, neighbour.stdout)
	}
	neighbour.delete(t)
	trace(t, c, neighbour.ID(), "task.create", "task.start", "module.start", "module.run", "task.wait", "task.delete")
	life := trace(t, c, b.ID(), "task.create", "task.start", "module.start", "module.run", "task.wait", "task.delete")
	sent := 0
	for _, s := range c.Trace(life["module.run"].TraceID) {
		if s.Name == "one of many" {
			sent++
			if s.Parent != life["module.run"].ID {
				t.Fatalf("below %s, want module.run", s.Parent)
			}
		}
	}
	if dropped := life["module.run"].Attrs["wasm.guest.dropped"]; sent < 100 || sent > 2000 || dropped != fmt.Sprint(many-sent) {
		t.Errorf("%d spans came, %s dropped, of %d", sent, dropped, many)
	}
}

func TestASpanThatIsOpenEndsWithItsGuest(t *testing.T) {
	n := useNode(t)
	t.Run("killed", func(t *testing.T) {
		b := container(t, n, app(t, n, "observe-go.wasm"), args("/app.wasm", "hold"))
		b.mustCreate(t)
		b.mustStart(t)
		eventually(t, "the span has begun", func() bool { return b.stdout.String() == "holding\n" })
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := b.exit(t); status != 143 {
			t.Errorf("status %d", status)
		}
		b.delete(t)
		life := trace(t, spans, b.ID(), "module.run", "held")
		held, run := life["held"], life["module.run"]
		if held.Parent != run.ID || !held.Failed || !strings.Contains(held.Status, "signal 15") || held.Attrs["wasm.guest.unfinished"] != "true" || !held.End.Equal(run.End) {
			t.Errorf("got %+v", held)
		}
	})
	t.Run("trapped", func(t *testing.T) {
		b, status := run(t, n, app(t, n, "observetrap.wasm"), args("/app.wasm"))
		life := trace(t, spans, b.ID(), "module.run", "fatal")
		fatal := life["fatal"]
		if status != 134 || fatal.Parent != life["module.run"].ID || !fatal.Failed || !strings.Contains(fatal.Status, "unreachable") || fatal.Attrs["wasm.guest.unfinished"] != "true" {
			t.Errorf("status %d, got %+v", status, fatal)
		}
	})
}

func TestAGuestsMetricsAreExported(t *testing.T) {
	n, c := tracedNode(t, options(), "OTEL_METRIC_EXPORT_INTERVAL=200")
	for _, lang := range []string{"go", "c", "rust"} {
		b, status := run(t, n, app(t, n, "observe-"+lang+".wasm"), args("/app.wasm"))
		if status != 0 {
			t.Errorf("status %d, %q", status, b.stderr)
		}
		eventually(t, "the metric of "+lang, func() bool {
			return slices.ContainsFunc(c.Metrics(), func(m collector.Metric) bool {
				return m.Name == "guest.items" && m.Kind == "counter" && slices.ContainsFunc(m.Points, func(p collector.Point) bool {
					return p.Value == 3 && p.Attrs["lang"] == lang && p.Attrs["container.id"] == b.ID() && len(p.Attrs) == 2
				})
			})
		})
	}
}

func TestTheHostsFileSwitchesSpansOfGuestsOff(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[telemetry]\nguest_spans = false\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n, c := tracedNode(t, options(), "CONTAINERD_SHIM_WAZERO_CONFIG="+file)
	b, status := run(t, n, app(t, n, "observe-c.wasm"), args("/app.wasm"))
	life := trace(t, c, b.ID(), "module.run", "task.delete")
	if status != 0 || b.stdout.String() != "observed \n" || life["work"].Name != "" || len(life["module.run"].Events) > 0 || life["module.run"].Attrs["wasm.guest.dropped"] != "" {
		t.Errorf("status %d, %q, %v, %v", status, b.stdout, life["work"], life["module.run"])
	}
}
