package otlp

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// A limit is what the value of a variable may be, and what is taken where it is
// none, too small or too large.
type limit struct {
	name                    string
	standard, min, low, max int
}

// Limits of the queue of spans. The SDK takes any number: of the queue and of a
// batch it panics at one that is negative and makes room for all of one that is
// huge, a delay of nothing keeps a processor busy, and without a timeout the first
// export that hangs is the last.
var (
	queueSize     = limit{"OTEL_BSP_MAX_QUEUE_SIZE", sdktrace.DefaultMaxQueueSize, 1, sdktrace.DefaultMaxQueueSize, 1 << 16}
	batchSize     = limit{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", sdktrace.DefaultMaxExportBatchSize, 1, sdktrace.DefaultMaxExportBatchSize, 1 << 16}
	scheduleDelay = limit{"OTEL_BSP_SCHEDULE_DELAY", sdktrace.DefaultScheduleDelay, 10, 10, int(time.Hour / time.Millisecond)}
	exportTimeout = limit{"OTEL_BSP_EXPORT_TIMEOUT", sdktrace.DefaultExportTimeout, 1, sdktrace.DefaultExportTimeout, int(time.Hour / time.Millisecond)}
)

// value is that of the variable; onError is told what is not taken as it is.
func (l limit) value(onError func(error)) int {
	s := value(l.name)
	if s == "" {
		return l.standard
	}
	n, err := strconv.Atoi(s) // the nearest there is, when it is out of range
	taken := min(n, l.max)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		taken = l.standard
	case n < l.min:
		taken = l.low
	}
	if err != nil || taken != n {
		onError(variableError{l.name, fmt.Errorf("not a number from %d to %d: %d is taken", l.min, l.max, taken)})
	}
	return taken
}

func (l limit) milliseconds(onError func(error)) time.Duration {
	return time.Duration(l.value(onError)) * time.Millisecond
}

// batching is how spans wait for the collector: in a queue of a fixed size, which
// drops what it has no room for.
func batching(onError func(error)) sdktrace.BatchSpanProcessorOption {
	queue, batch := queueSize.value(onError), batchSize.value(onError)
	return func(o *sdktrace.BatchSpanProcessorOptions) {
		o.MaxQueueSize, o.MaxExportBatchSize = queue, min(batch, queue)
		o.BatchTimeout = scheduleDelay.milliseconds(onError)
		o.ExportTimeout = exportTimeout.milliseconds(onError)
		o.BlockOnQueueFull = false
	}
}
