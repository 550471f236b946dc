package otlp

import (
	"errors"
	"fmt"
	"strconv"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// A limit is what the value of a variable may be, from 1 to max, and what is taken
// where it is none or too small; max where it is too large.
type limit struct {
	name          string
	standard, max int
}

// limits of the queue of spans. The SDK takes any number: of the queue and of a
// batch it panics at one that is negative and makes room for all of one that is
// huge, without a delay it keeps a processor busy, and without a timeout the first
// export that hangs is the last.
var limits = []limit{
	{"OTEL_BSP_MAX_QUEUE_SIZE", sdktrace.DefaultMaxQueueSize, 1 << 16},
	{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", sdktrace.DefaultMaxExportBatchSize, 1 << 16},
	{"OTEL_BSP_SCHEDULE_DELAY", sdktrace.DefaultScheduleDelay, 3_600_000}, // ms
	{"OTEL_BSP_EXPORT_TIMEOUT", sdktrace.DefaultExportTimeout, 3_600_000}, // ms
}

// batching are the variables of the queue, as their values are taken. Report is told
// of those that cannot be taken as they are.
func batching(report func(error)) map[string]string {
	change := map[string]string{}
	for _, l := range limits {
		s := value(l.name)
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s) // the nearest there is, when it is out of range
		taken := min(n, l.max)
		if errors.Is(err, strconv.ErrSyntax) || n < 1 {
			taken = l.standard
		}
		if err != nil || taken != n {
			report(variableError{l.name, fmt.Errorf("not a number from 1 to %d: %d is taken", l.max, taken)})
		}
		change[l.name] = strconv.Itoa(taken) // without blanks, which the SDK does not take
	}
	return change
}
