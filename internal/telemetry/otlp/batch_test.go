package otlp

import (
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func TestTheQueueOfSpansHasLimits(t *testing.T) {
	const queue, batch, delay, timeout = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"
	standard := sdktrace.BatchSpanProcessorOptions{MaxQueueSize: 2048, MaxExportBatchSize: 512, BatchTimeout: 5 * time.Second, ExportTimeout: 30 * time.Second}
	for _, tt := range []struct {
		name  string
		env   map[string]string
		want  func(*sdktrace.BatchSpanProcessorOptions)
		wrong int // values of which it is said
	}{
		{"nothing", nil, nil, 0},
		{"what is in the range", map[string]string{queue: "100", batch: "50", delay: "200", timeout: " 1000 "}, func(o *sdktrace.BatchSpanProcessorOptions) {
			o.MaxQueueSize, o.MaxExportBatchSize, o.BatchTimeout, o.ExportTimeout = 100, 50, 200*time.Millisecond, time.Second
		}, 0},
		{"a batch larger than the queue", map[string]string{queue: "100"}, func(o *sdktrace.BatchSpanProcessorOptions) {
			o.MaxQueueSize, o.MaxExportBatchSize = 100, 100
		}, 0},
		{"zeros", map[string]string{queue: "0", batch: "0", delay: "0", timeout: "0"}, func(o *sdktrace.BatchSpanProcessorOptions) {
			o.BatchTimeout = 10 * time.Millisecond
		}, 4},
		{"negative", map[string]string{queue: "-1", batch: "-1", delay: "-1", timeout: "-1"}, func(o *sdktrace.BatchSpanProcessorOptions) {
			o.BatchTimeout = 10 * time.Millisecond
		}, 4},
		{"huge", map[string]string{queue: "9223372036854775807", batch: "99999999999999999999", delay: "9223372036854775807", timeout: "99999999999999999999"}, func(o *sdktrace.BatchSpanProcessorOptions) {
			o.MaxQueueSize, o.MaxExportBatchSize, o.BatchTimeout, o.ExportTimeout = 65536, 65536, time.Hour, time.Hour
		}, 4},
		{"no numbers", map[string]string{queue: "many", batch: "1e3", delay: "5s", timeout: "0x10"}, nil, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range []string{queue, batch, delay, timeout} {
				t.Setenv(name, tt.env[name])
			}
			want := standard
			if tt.want != nil {
				tt.want(&want)
			}
			var got sdktrace.BatchSpanProcessorOptions
			wrong := 0
			batching(func(error) { wrong++ })(&got)
			if got != want || wrong != tt.wrong {
				t.Errorf("got %+v, %d wrong; want %+v, %d", got, wrong, want, tt.wrong)
			}
			// The SDK takes them.
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			_, shutdown := Setup(Shim{ID: "ns/id"}, nil, func(error) {})
			if err := shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
