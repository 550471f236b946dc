// Package quiet keeps a `start` from printing anything but its answer.
//
// A package of OpenTelemetry looks at OTEL_SPAN_EVENT_COUNT_LIMIT and its kin as it is
// initialised, and says on the standard error what is wrong with one. In the
// order that Go prescribes this package comes before: it imports little, and its
// path sorts before that one's.
package quiet

import (
	"log/slog"
	"os"
)

func init() {
	if os.Args[len(os.Args)-1] == "start" {
		slog.SetDefault(slog.New(slog.DiscardHandler))
	}
}
