package shim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/log"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/otlp"
)

// startTelemetry starts the export of the telemetry of the shim with the given id,
// see [otlp.Setup]; with guests, for what those make themselves too. What is wrong with
// it is in the log, and of no consequence.
func startTelemetry(id string) (provider trace.TracerProvider, guests bool, shutdown func(context.Context) error) {
	lines := log.L.WithFields(log.Fields{"runtime": RuntimeName, "shim": id})
	report := func(err error) {
		lines.WithError(errors.New(errorText(err.Error()))).Warn("telemetry")
	}
	h, _ := readHostFile() // Create says what is wrong with it
	v, unknown, err := h.variables()
	if err != nil {
		lines.WithError(err).Warn("telemetry is off")
		return nil, false, nil
	}
	guests, more, err := h.observesGuests()
	if err != nil {
		lines.WithError(err).Warn("telemetry of guests is off")
	}
	for _, key := range append(unknown, more...) {
		lines.Warnf("%s: %s: nothing reads it", h.path, key)
	}
	provider, flush := otlp.Setup(otlp.Shim{ID: id, Version: Version()}, v, report)
	return provider, guests, func(ctx context.Context) error {
		if err := flush(ctx); err != nil {
			report(fmt.Errorf("flush: %w", err)) // which is no failure of the shim
		}
		return nil
	}
}

// guestSpans is the key of the host's file that switches off what guests make of spans,
// logs and metrics. Of those of the table that are no variables it is the only one.
const guestSpans = "guest_spans"

// observesGuests tells whether guests may make spans of their own: unless the file says
// otherwise. It names the keys that are for guests and that nothing reads.
func (h hostFile) observesGuests() (on bool, unknown []string, err error) {
	table, _ := h.telemetry.(map[string]any)
	for key := range table {
		if strings.HasPrefix(key, "guest_") && key != guestSpans {
			unknown = append(unknown, "telemetry."+key)
		}
	}
	slices.Sort(unknown)
	v, set := table[guestSpans]
	on, ok := v.(bool)
	if set && !ok {
		err = fmt.Errorf("%s: telemetry.%s: neither true nor false", h.path, guestSpans)
	}
	return on || !set, unknown, err
}
