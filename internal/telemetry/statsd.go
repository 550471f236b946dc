package telemetry

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// statsd is the one format of metrics that the ABI has.
const statsd = 1

const (
	// maxMetrics bounds how many metrics the guest of one process may have: names with
	// their tags.
	maxMetrics = 32
	// maxAllMetrics bounds how many all guests of this shim may have, ever: what has
	// been said once is exported again and again.
	maxAllMetrics = 1024
	// maxMetricName is what OpenTelemetry allows, bytes.
	maxMetricName = 255
)

// guestMetrics are those of one guest.
type guestMetrics struct {
	attrs []attribute.KeyValue // of each
	known map[string]*guestMetric
}

// metricAttributes are those of ctx that say whose a metric is. The others are many, or
// change from one process to the next.
func metricAttributes(ctx context.Context) []attribute.KeyValue {
	attrs, _ := ctx.Value(attributesKey{}).([]attribute.KeyValue)
	return slices.DeleteFunc(slices.Clone(attrs), func(kv attribute.KeyValue) bool {
		return kv.Key != ContainerID && !strings.HasPrefix(string(kv.Key), "k8s.")
	})
}

// A guestMetric is one instrument with one set of attributes.
type guestMetric struct {
	record func(ctx context.Context, value float64)
	last   float64 // of a gauge
}

// allMetrics counts those of all guests.
var allMetrics struct {
	sync.Mutex
	n int
}

// record records a message of statsd, with the extensions of DogStatsD that the ABI
// took over:
//
//	NAME:VALUE|TYPE[|@RATE][|#TAG:VALUE,...]
//
// TYPE is c (a counter), g (a gauge; with a sign it moves by as much), ms, h or d (a
// histogram; ms is in milliseconds). It returns whether the message made sense and was
// within the bounds.
//
// See https://github.com/statsd/statsd/blob/master/docs/metric_types.md.
func (m *guestMetrics) record(ctx context.Context, message string) bool {
	name, rest, ok := strings.Cut(message, ":")
	fields := strings.Split(rest, "|")
	if !ok || len(fields) < 2 || !metricName(name) {
		return false
	}
	text, kind := fields[0], fields[1]
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || kind == "c" && value < 0 {
		return false
	}
	tags, sampled := "", 1.0
	for _, f := range fields[2:] {
		switch {
		case strings.HasPrefix(f, "#"):
			tags = f[1:]
		case strings.HasPrefix(f, "@"):
			if sampled, err = strconv.ParseFloat(f[1:], 64); err != nil || !(sampled > 0 && sampled <= 1) {
				return false
			}
		}
	}
	key := kind + "|" + name + "|" + tags
	i := m.known[key]
	if i == nil {
		if i = m.add(kind, name, tags); i == nil {
			return false
		}
		if m.known == nil {
			m.known = map[string]*guestMetric{}
		}
		m.known[key] = i
	}
	switch kind {
	case "c":
		value /= sampled
	case "g":
		if text[0] == '+' || text[0] == '-' {
			value += i.last
		}
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return false
	}
	i.last = value
	i.record(ctx, value)
	return true
}

// metricName tells whether OpenTelemetry has such a name for an instrument, and a guest
// may: many a store puts metrics of one name together, whoever they are from.
func metricName(name string) bool {
	for i, c := range name {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9') && !strings.ContainsRune("_.-/", c)) {
			return false
		}
	}
	return name != "" && len(name) <= maxMetricName && !isReserved(name)
}

// add makes an instrument, or finds that of another guest. It is nil where there may
// be no more of them, or there is no such kind.
func (m *guestMetrics) add(kind, name, tags string) *guestMetric {
	if len(m.known) >= maxMetrics || !slices.Contains([]string{"c", "g", "ms", "h", "d"}, kind) {
		return nil
	}
	attrs := slices.Clone(m.attrs)
	for _, tag := range strings.Split(tags, ",") {
		if tag == "" {
			continue
		}
		kv, ok := guestTag(tag)
		if !ok {
			return nil
		}
		attrs = append(attrs, kv)
	}
	allMetrics.Lock()
	defer allMetrics.Unlock()
	if allMetrics.n >= maxAllMetrics {
		return nil
	}
	set := metric.WithAttributeSet(attribute.NewSet(attrs...))
	meter := otel.Meter(guestScope)
	var record func(context.Context, float64)
	var err error
	switch kind {
	case "c":
		var c metric.Float64Counter
		c, err = meter.Float64Counter(name)
		record = func(ctx context.Context, v float64) { c.Add(ctx, v, set) }
	case "g":
		var g metric.Float64Gauge
		g, err = meter.Float64Gauge(name)
		record = func(ctx context.Context, v float64) { g.Record(ctx, v, set) }
	default:
		var opts []metric.Float64HistogramOption
		if kind == "ms" {
			opts = append(opts, metric.WithUnit("ms"))
		}
		var h metric.Float64Histogram
		h, err = meter.Float64Histogram(name, opts...)
		record = func(ctx context.Context, v float64) { h.Record(ctx, v, set) }
	}
	if err != nil {
		return nil
	}
	allMetrics.n++
	return &guestMetric{record: record}
}
