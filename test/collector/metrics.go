package collector

import (
	"context"
	"encoding/hex"
	"slices"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
)

// A Metric is one as it was received, of one export.
type Metric struct {
	Resource    map[string]string
	Name        string
	Description string
	Unit        string
	Kind        string // gauge, counter, updowncounter or histogram
	Cumulative  bool
	Points      []Point
}

// A Point is the value of a metric for one set of attributes.
type Point struct {
	Attrs       map[string]string
	Start, Time time.Time
	Value       float64   // of a histogram, the sum
	Count       uint64    // of a histogram
	Bounds      []float64 // of a histogram
	Buckets     []uint64  // of a histogram, one more than there are bounds
	Exemplars   []string  // the traces that those of a histogram name
}

type metricsService struct {
	collectorpb.UnimplementedMetricsServiceServer
	c *Collector
}

// Export implements the OTLP metrics service.
func (s metricsService) Export(ctx context.Context, r *collectorpb.ExportMetricsServiceRequest) (*collectorpb.ExportMetricsServiceResponse, error) {
	s.c.takeMetrics(ofGRPC(ctx), r)
	return &collectorpb.ExportMetricsServiceResponse{}, nil
}

func (c *Collector) takeMetrics(request Request, r *collectorpb.ExportMetricsServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keep {
		c.kept = append(c.kept, r)
	}
	for _, rm := range r.ResourceMetrics {
		resource := attributes(rm.Resource.GetAttributes())
		for _, sm := range rm.ScopeMetrics {
			request.Metrics += len(sm.Metrics)
			for _, m := range sm.Metrics {
				c.metrics = append(c.metrics, metric(resource, m))
			}
		}
	}
	c.requests = append(c.requests, request)
}

func metric(resource map[string]string, m *metricspb.Metric) Metric {
	out := Metric{Resource: resource, Name: m.Name, Description: m.Description, Unit: m.Unit}
	const cumulative = metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE
	switch d := m.Data.(type) {
	case *metricspb.Metric_Gauge:
		out.Kind, out.Points = "gauge", numbers(d.Gauge.DataPoints)
	case *metricspb.Metric_Sum:
		out.Kind, out.Points = "updowncounter", numbers(d.Sum.DataPoints)
		if d.Sum.IsMonotonic {
			out.Kind = "counter"
		}
		out.Cumulative = d.Sum.AggregationTemporality == cumulative
	case *metricspb.Metric_Histogram:
		out.Kind = "histogram"
		out.Cumulative = d.Histogram.AggregationTemporality == cumulative
		for _, p := range d.Histogram.DataPoints {
			out.Points = append(out.Points, Point{
				Attrs: attributes(p.Attributes),
				Start: time.Unix(0, int64(p.StartTimeUnixNano)), Time: time.Unix(0, int64(p.TimeUnixNano)),
				Value: p.GetSum(), Count: p.Count, Bounds: p.ExplicitBounds, Buckets: p.BucketCounts, Exemplars: exemplars(p.Exemplars),
			})
		}
	}
	return out
}

func exemplars(all []*metricspb.Exemplar) (traces []string) {
	for _, e := range all {
		if len(e.TraceId) > 0 {
			traces = append(traces, hex.EncodeToString(e.TraceId))
		}
	}
	return traces
}

func numbers(points []*metricspb.NumberDataPoint) (out []Point) {
	for _, p := range points {
		v := p.GetAsDouble()
		if i, ok := p.Value.(*metricspb.NumberDataPoint_AsInt); ok {
			v = float64(i.AsInt)
		}
		out = append(out, Point{
			Attrs: attributes(p.Attributes), Value: v,
			Start: time.Unix(0, int64(p.StartTimeUnixNano)), Time: time.Unix(0, int64(p.TimeUnixNano)),
		})
	}
	return out
}

// Metrics are all metrics received so far, those of the newest export last.
func (c *Collector) Metrics() []Metric {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.metrics)
}
