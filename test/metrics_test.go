package test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// often has the shims send what they measure all the time.
const often = "OTEL_METRIC_EXPORT_INTERVAL=100"

// A figure is what a shim has last said of one series of a metric.
type figure struct {
	collector.Metric
	collector.Point
}

// figuresOf are those of the shim of a container: by the name of a metric and the
// values of its attributes, in the order of their keys.
func figuresOf(c *collector.Collector, id string) map[string]figure {
	all := map[string]figure{}
	for _, m := range c.Metrics() {
		if m.Resource["service.instance.id"] != node.Namespace+"/"+id {
			continue
		}
		for _, p := range m.Points {
			name := m.Name
			for _, k := range slices.Sorted(maps.Keys(p.Attrs)) {
				name += " " + p.Attrs[k]
			}
			all[name] = figure{m, p}
		}
	}
	return all
}

// exportsOf is how often metrics have been sent.
func exportsOf(c *collector.Collector) (n int) {
	for _, r := range c.Requests() {
		if r.Metrics > 0 {
			n++
		}
	}
	return n
}

// measures waits until the shim of a container has said so.
func measures(t *testing.T, c *collector.Collector, id string, want map[string]float64) map[string]figure {
	t.Helper()
	got := map[string]float64{}
	var all map[string]figure
	for range 500 {
		all = figuresOf(c, id)
		for name := range want {
			f := all[name]
			if got[name] = f.Value; f.Kind == "histogram" {
				got[name] = float64(f.Count)
			}
		}
		if maps.Equal(got, want) {
			return all
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("got %v, want %v", got, want)
	return all
}

// stagesOnce are the stages of a container that ran to its end, each measured once.
func stagesOnce(also ...string) map[string]float64 {
	want := map[string]float64{}
	for _, name := range append(also, collector.Life...) {
		if name != "task.wait" && name != "module.run" {
			want["wasm.stage.duration "+name] = 1
		}
	}
	return want
}

func TestWhatAShimMeasuresOfItsContainers(t *testing.T) {
	n, c := tracedNode(t, options(), often)
	probe, limits := app(t, n, "probe.wasm"), app(t, n, "limits-c.wasm")
	exits := func(b *box, reason string) {
		t.Helper()
		measures(t, c, b.ID(), map[string]float64{
			"wasm.instance.exits " + reason: 1, "wasm.instance.count": 0, "wasm.memory.usage": 0, "wasm.memory.peak": 1,
		})
		for name := range figuresOf(c, b.ID()) {
			if strings.HasPrefix(name, "wasm.instance.exits") && !strings.HasSuffix(name, reason) || strings.HasSuffix(name, ".dropped") {
				t.Errorf("%s: it has %s", b.ID(), name)
			}
		}
	}
	t.Run("cold and warm", func(t *testing.T) {
		cold, _ := run(t, n, probe, args("/app.wasm", "exit", "3"))
		exits(cold, "nonzero")
		got := measures(t, c, cold.ID(), stagesOnce(collector.Miss...))
		for _, name := range []string{"task.create", "module.compile", "shim.start"} {
			f := got["wasm.stage.duration "+name]
			if f.Value <= 0 || f.Value > 60 || f.Unit != "s" || len(f.Exemplars) == 0 {
				t.Errorf("%s: %+v, want a time, and a span that it was", name, f)
			}
		}
		warm, _ := run(t, n, probe, args("/app.wasm", "exit", "0"))
		exits(warm, "zero")
		measures(t, c, warm.ID(), stagesOnce())
		size, code := float64(len(guest(t, "probe.wasm"))), 0.0
		for b, hit := range map[*box]string{cold: "false", warm: "true"} {
			got := measures(t, c, b.ID(), map[string]float64{
				"wasm.cache.lookups " + hit: 1, "wasm.cache.module.size " + hit: 1, "wasm.cache.code.size " + hit: 1,
			})
			if got := got["wasm.cache.module.size "+hit].Value; got != size {
				t.Errorf("a module of %v bytes, want %v", got, size)
			}
			compiled := got["wasm.cache.code.size "+hit].Value
			if code == 0 {
				code = compiled
			}
			if compiled < size || compiled != code {
				t.Errorf("compiled to %v bytes, and %v: want the same, and more than %v", compiled, code, size)
			}
			if _, other := got["wasm.cache.lookups "+map[string]string{"false": "true", "true": "false"}[hit]]; other {
				t.Errorf("%s is also the other", hit)
			}
		}
	})
	t.Run("a trap", func(t *testing.T) {
		b, _ := run(t, n, app(t, n, "trap.wasm"), args("/app.wasm"))
		exits(b, "trap")
	})
	t.Run("killed", func(t *testing.T) {
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		measures(t, c, b.ID(), map[string]float64{"wasm.instance.count": 0})
		b.mustStart(t)
		measures(t, c, b.ID(), map[string]float64{"wasm.instance.count": 1})
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		b.exit(t)
		b.delete(t)
		exits(b, "signal")
	})
	t.Run("never started", func(t *testing.T) {
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		if _, err := b.task.Delete(b.ctx, containerd.WithProcessKill); err != nil {
			t.Fatal(err)
		}
		got := measures(t, c, b.ID(), map[string]float64{"wasm.stage.duration task.delete": 1, "wasm.instance.count": 0})
		for name := range got {
			if strings.HasPrefix(name, "wasm.instance.exits") {
				t.Errorf("it has %s", name)
			}
		}
	})
	t.Run("a start that fails", func(t *testing.T) {
		b := container(t, n, app(t, n, "nostart.wasm"), args("/app.wasm"))
		if err := b.create(); err == nil {
			t.Fatal("created")
		}
		measures(t, c, b.ID(), map[string]float64{
			"wasm.stage.duration INVALID_ARGUMENT task.create": 1, "wasm.stage.duration _OTHER module.load": 1,
		})
	})
	t.Run("OOM", func(t *testing.T) {
		b, _ := run(t, n, limits, args("/app.wasm", "file", "/dev/shm/f", "60"), withMemory(50))
		exits(b, "oom")
	})
	t.Run("memory", func(t *testing.T) {
		b := container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "stdin", "50"))
		b.mustCreate(t, true)
		b.mustStart(t)
		before := measures(t, c, b.ID(), map[string]float64{"wasm.instance.count": 1})["wasm.memory.usage"].Value
		if before <= 0 || before > 1<<20 || int(before)%(64<<10) != 0 {
			t.Errorf("%v bytes before it has grown, want some pages of 64 KiB", before)
		}
		b.stdin.Close()
		b.closeStdin(t)
		b.says(t, "holding: 50")
		after := 0.0
		eventually(t, "50 MiB", func() bool {
			after = figuresOf(c, b.ID())["wasm.memory.usage"].Value
			return after >= 50<<20
		})
		if after > 52<<20 || int(after)%(64<<10) != 0 {
			t.Errorf("%v bytes of memory, want 50 MiB", after)
		}
		if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		b.exit(t)
		b.delete(t)
		exits(b, "signal")
		if got := figuresOf(c, b.ID())["wasm.memory.peak"].Value; got != after {
			t.Errorf("%v bytes at its end, want %v", got, after)
		}
	})
	t.Run("execs", func(t *testing.T) {
		b := idle(t, n)
		for i := range 3 {
			b.runExec(t, fmt.Sprint("e", i), nil, "/hello.wasm")
		}
		measures(t, c, b.ID(), map[string]float64{
			"wasm.instance.count": 1, "wasm.instance.exits zero": 3, "wasm.stage.duration task.exec": 3, "wasm.stage.duration task.start": 4,
			"wasm.memory.peak": 3,
		})
	})
	t.Run("a pod", func(t *testing.T) {
		group := newID(t)
		grouped := oci.WithAnnotations(map[string]string{groupAnnotation: group})
		spin := app(t, n, "spin.wasm")
		var of []*box
		for range 2 {
			b := container(t, n, spin, args("/app.wasm"), grouped)
			b.mustCreate(t)
			b.mustStart(t)
			of = append(of, b)
		}
		shim := of[0].ID() // which the group's shim has been started for
		measures(t, c, shim, map[string]float64{
			"wasm.instance.count": 2, "wasm.stage.duration task.create": 2, "wasm.stage.duration shim.start": 1,
		})
		for i, b := range of {
			if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			b.exit(t)
			measures(t, c, shim, map[string]float64{"wasm.instance.count": float64(1 - i), "wasm.instance.exits signal": float64(i + 1)})
		}
	})
	t.Run("Linux", func(t *testing.T) {
		b, _ := run(t, n, image(t, n, "linux", node.Program("hello", guest(t, "hello-static"))), args("/hello"))
		got := measures(t, c, b.ID(), map[string]float64{
			"wasm.stage.duration task.create": 1, "wasm.stage.duration task.start": 1, "wasm.stage.duration task.delete": 1, "wasm.instance.count": 0,
		})
		for name := range got {
			if strings.HasPrefix(name, "wasm.instance.exits") || strings.HasPrefix(name, "wasm.cache") || strings.HasPrefix(name, "wasm.memory.peak") {
				t.Errorf("it has %s", name)
			}
		}
	})
}

// What is measured when the shim ends is sent then, whatever the interval.
func TestAShimThatEndsSendsWhatItHasMeasured(t *testing.T) {
	n, c := tracedNode(t, options())
	b, _ := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	measures(t, c, b.ID(), map[string]float64{"wasm.instance.exits zero": 1, "wasm.stage.duration task.delete": 1})
	if got := exportsOf(c); got != 1 {
		t.Errorf("%d exports, want one", got)
	}
}

func TestWhatIsMeasuredDoesNotDependOnSampling(t *testing.T) {
	for name, env := range map[string]string{
		"by the caller":  "TRACECONTEXT=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
		"by the sampler": "OTEL_TRACES_SAMPLER=always_off",
	} {
		t.Run(name, func(t *testing.T) {
			n, c := tracedNode(t, options(), often, env)
			b, _ := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
			measures(t, c, b.ID(), map[string]float64{"wasm.instance.exits zero": 1})
			measures(t, c, b.ID(), stagesOnce(collector.Miss...))
			if got := c.Spans(); len(got) > 0 {
				t.Errorf("spans:\n%s", collector.Tree(got))
			}
			for name, f := range figuresOf(c, b.ID()) {
				if len(f.Exemplars) > 0 {
					t.Errorf("%s names spans that nobody has", name)
				}
			}
		})
	}
}

func TestMetricsAreOffWhereTheyAreNotWanted(t *testing.T) {
	for name, tt := range map[string]struct {
		env    func(addr string) []string
		traced bool
	}{
		"OTEL_METRICS_EXPORTER=none": {func(addr string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + addr, "OTEL_METRICS_EXPORTER=none"}
		}, true},
		"another exporter": {func(addr string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + addr, "OTEL_METRICS_EXPORTER=prometheus"}
		}, true},
		"an endpoint of traces alone": {func(addr string) []string {
			return []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + addr, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc"}
		}, true},
		"no traces": {func(addr string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + addr, "OTEL_TRACES_EXPORTER=none"}
		}, false},
		"OTEL_SDK_DISABLED": {func(addr string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + addr, "OTEL_SDK_DISABLED=true"}
		}, false},
		"an endpoint of metrics alone": {func(addr string) []string {
			return []string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://" + addr}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			need(t)
			c, err := collector.Start()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			o := options()
			o.ShimEnv = append(tt.env(c.Addr()), often, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=100")
			n := newNode(t, o)
			before := traces(t, n)
			b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
			if status != 0 || b.stdout.String() != "hello\n" {
				t.Errorf("status %d, %q", status, b.stdout)
			}
			leaves(t, n, before) // the shim has ended, and sent what it had
			if got := exportsOf(c); got > 0 {
				t.Errorf("metrics were sent %d times", got)
			}
			if got := len(c.Spans()) > 0; got != tt.traced {
				t.Errorf("spans: %t, want %t", got, tt.traced)
			}
		})
	}
}

// Jaeger is one.
func TestACollectorWithoutMetricsIsNoTrouble(t *testing.T) {
	need(t)
	c, err := collector.StartTraces()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	o := options()
	o.ShimEnv = []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.Addr(), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=100", often}
	n := newNode(t, o)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"))
	b.mustCreate(t)
	b.mustStart(t)
	const said = "the collector takes no metrics"
	eventually(t, "it is said", func() bool { return strings.Contains(n.Log(), said) })
	time.Sleep(time.Second) // ten exports
	if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	b.delete(t)
	trace(t, c, b.ID(), collector.Life...)
	log := n.Log()
	if got := strings.Count(log, said); got != 1 || strings.Contains(log, "Unimplemented") && strings.Count(log, "Unimplemented") > 1 {
		t.Errorf("it is said %d times:\n%s", got, log)
	}
}

// Deltas are what has come since the last export.
func TestTheTemporalityIsForTheOperatorToSay(t *testing.T) {
	n, c := tracedNode(t, options(), often, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta")
	b, _ := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	got := measures(t, c, b.ID(), map[string]float64{"wasm.instance.exits zero": 1, "wasm.instance.count": 0})
	if got["wasm.instance.exits zero"].Cumulative || !got["wasm.instance.count"].Cumulative {
		t.Errorf("%+v: want a counter of what is new, and an up-down counter of what is", got)
	}
}
