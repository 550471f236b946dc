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
		want map[string]string // what is taken
		told int
	}{
		{"nothing", nil, nil, 0},
		{"what is in the range", map[string]string{queue: "100", batch: "50", delay: "1", timeout: " 1000 "}, map[string]string{queue: "100", batch: "50", delay: "1", timeout: "1000"}, 0},
		{"a batch larger than the queue", map[string]string{queue: "100"}, map[string]string{queue: "100"}, 0},
		{"the most", most, most, 0},
		{"zeros", map[string]string{queue: "0", batch: "0", delay: "0", timeout: "0"}, standard, 4},
		{"negative", map[string]string{queue: "-1", batch: "-1", delay: "-1", timeout: "-99999999999999999999"}, standard, 4},
		{"huge", map[string]string{queue: "9223372036854775807", batch: "99999999999999999999", delay: "9223372036854775807", timeout: "99999999999999999999"}, most, 4},
		{"no numbers", map[string]string{queue: "many", batch: "1e3", delay: "5s", timeout: "0x10"}, standard, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range []string{queue, batch, delay, timeout} {
				t.Setenv(name, tt.env[name])
			}
			told := 0
			if got := batching(func(error) { told++ }); !maps.Equal(got, tt.want) || told != tt.told {
				t.Errorf("got %v, told %d times; want %v", got, told, tt.want)
			}
			// The SDK takes them, and has nothing to say.
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv("OTEL_METRICS_EXPORTER", "none")
			told = 0
			_, shutdown := Setup(Shim{ID: "ns/id"}, nil, func(error) { told++ })
			if err := shutdown(t.Context()); err != nil || told != tt.told {
				t.Errorf("%v, told %d times", err, told)
			}
		})
	}
}
