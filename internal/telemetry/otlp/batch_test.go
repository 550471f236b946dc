package otlp

import (
	"maps"
	"testing"
)

func TestTheQueueOfSpansHasLimits(t *testing.T) {
	const queue, batch, delay, timeout = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"
	standard := map[string]string{queue: "2048", batch: "512", delay: "5000", timeout: "30000"}
	most := map[string]string{queue: "65536", batch: "65536", delay: "3600000", timeout: "3600000"}
	for _, tt := range []struct {
		name string
		env  map[string]string
		want map[string]string // what is taken instead
	}{
		{"nothing", nil, nil},
		{"what is in the range", map[string]string{queue: "100", batch: "50", delay: "1", timeout: " 1000 "}, nil},
		{"a batch larger than the queue", map[string]string{queue: "100"}, nil},
		{"the most", most, nil},
		{"zeros", map[string]string{queue: "0", batch: "0", delay: "0", timeout: "0"}, standard},
		{"negative", map[string]string{queue: "-1", batch: "-1", delay: "-1", timeout: "-99999999999999999999"}, standard},
		{"huge", map[string]string{queue: "9223372036854775807", batch: "99999999999999999999", delay: "9223372036854775807", timeout: "99999999999999999999"}, most},
		{"no numbers", map[string]string{queue: "many", batch: "1e3", delay: "5s", timeout: "0x10"}, standard},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range []string{queue, batch, delay, timeout} {
				t.Setenv(name, tt.env[name])
			}
			told := 0
			if got := batching(func(error) { told++ }); !maps.Equal(got, tt.want) || told != len(tt.want) {
				t.Errorf("got %v, told %d times; want %v", got, told, tt.want)
			}
			// The SDK takes them, and has nothing to say.
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv("OTEL_METRICS_EXPORTER", "none")
			told = 0
			_, shutdown := Setup(Shim{ID: "ns/id"}, nil, func(error) { told++ })
			if err := shutdown(t.Context()); err != nil || told != len(tt.want) {
				t.Errorf("%v, told %d times", err, told)
			}
		})
	}
}
