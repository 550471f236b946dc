package telemetry

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// measured has what guests record from now on end up in the function that is returned.
func measured(t testing.TB) func() map[string]metricdata.Metrics {
	t.Helper()
	reader := sdkmetric.NewManualReader()
	before := otel.GetMeterProvider()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	t.Cleanup(func() { otel.SetMeterProvider(before) })
	return func() map[string]metricdata.Metrics {
		var rm metricdata.ResourceMetrics
		if err := reader.Collect(context.Background(), &rm); err != nil {
			t.Fatal(err)
		}
		m := map[string]metricdata.Metrics{}
		for _, sm := range rm.ScopeMetrics {
			for _, metric := range sm.Metrics {
				m[metric.Name] = metric
			}
		}
		return m
	}
}

func TestAGuestsMetricsAreOfTheirKind(t *testing.T) {
	collect := measured(t)
	m := guestMetrics{attrs: []attribute.KeyValue{ContainerID.String("c")}}
	for _, message := range []string{
		"items:3|c|#lang:go", "items:1|c|@0.5|#lang:go", "depth:7|g", "depth:+2|g", "depth:-4|g", "took:12|ms", "took:8|ms", "size:1.5|h", "spread:2|d",
	} {
		if !m.record(context.Background(), message) {
			t.Errorf("%s: refused", message)
		}
	}
	got := collect()
	items := got["items"].Data.(metricdata.Sum[float64])
	if p := items.DataPoints; len(p) != 1 || p[0].Value != 5 || !items.IsMonotonic || p[0].Attributes.Len() != 2 {
		t.Errorf("items: got %+v", items)
	}
	if p := got["depth"].Data.(metricdata.Gauge[float64]).DataPoints; len(p) != 1 || p[0].Value != 5 {
		t.Errorf("depth: got %+v", p)
	}
	for name, want := range map[string]struct {
		unit  string
		count uint64
		sum   float64
	}{"took": {"ms", 2, 20}, "size": {"", 1, 1.5}, "spread": {"", 1, 2}} {
		p := got[name].Data.(metricdata.Histogram[float64]).DataPoints
		if len(p) != 1 || p[0].Count != want.count || p[0].Sum != want.sum || got[name].Unit != want.unit {
			t.Errorf("%s: got %+v", name, got[name])
		}
		if v, ok := p[0].Attributes.Value(ContainerID); !ok || v.AsString() != "c" {
			t.Errorf("%s: of %v", name, p[0].Attributes)
		}
	}
}

func TestWhatIsNoMetricIsRefused(t *testing.T) {
	collect := measured(t)
	var m guestMetrics
	for _, message := range []string{
		"", ":", "a", "a:", "a:1", "a:1|", "a:|c", "a:1|x", "a:1|s", "a:one|c", "a:NaN|g", "a:Inf|g", "a:1e999|g", "a:-1|c", ":1|c", "1a:1|c", "a b:1|c", "é:1|c",
		strings.Repeat("a", maxMetricName+1) + ":1|c", "a:1|c|@0", "a:1|c|@2", "a:1|c|@x", "a:1|c|#container.id:x",
		"wasm.instance.exits:1|c", "Otel.sdk:1|c", // not a guest's to say
	} {
		if m.record(context.Background(), message) {
			t.Errorf("%q: taken", message)
		}
	}
	for name, metric := range collect() {
		if s, ok := metric.Data.(metricdata.Sum[float64]); !ok || len(s.DataPoints) > 0 {
			t.Errorf("got %s", name)
		}
	}
}

func TestAGuestHasFewMetrics(t *testing.T) {
	collect := measured(t)
	var m guestMetrics
	taken := 0
	for i := range 10 * maxMetrics {
		if m.record(context.Background(), fmt.Sprintf("few:%d|c|#n:%d", i, i)) {
			taken++
		}
	}
	if p := collect()["few"].Data.(metricdata.Sum[float64]).DataPoints; taken != maxMetrics || len(p) != maxMetrics {
		t.Errorf("taken %d, got %d, want %d", taken, len(p), maxMetrics)
	}
	if !m.record(context.Background(), "few:1|c|#n:0") {
		t.Error("one that there is already was refused")
	}
}

// FuzzStatsd looks for a message that breaks its reader.
func FuzzStatsd(f *testing.F) {
	for _, s := range []string{"a:1|c", "a:+1|g|@0.5|#b:c,d", "a:1|ms|T1|c:x", "a:1:2|h", "|||", "a:|g|#", "a:1e308|c|@1e-308"} {
		f.Add(s)
	}
	measured(f)
	f.Fuzz(func(_ *testing.T, message string) {
		var m guestMetrics
		m.record(context.Background(), message)
	})
}
