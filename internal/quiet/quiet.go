// Package quiet keeps a `start`, and the `serve` that it becomes, from printing anything
// but the answer.
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
	if command := os.Args[len(os.Args)-1]; command == "start" || command == "serve" {
		slog.SetDefault(slog.New(slog.DiscardHandler))
	}
}
