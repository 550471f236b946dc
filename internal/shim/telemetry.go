package shim

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/log"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/otlp"
)

// traces tells whether the shim that reads this file is to trace.
func (h hostFile) traces() (on bool) {
	if v, _, err := h.variables(); err == nil {
		v.Use(func() { on = otlp.Enabled() })
	}
	return on
}

// startTelemetry starts the export of the telemetry of the shim with the given id,
// see [otlp.Setup]. What is wrong with it is in the log, and of no consequence.
func startTelemetry(id string) (provider trace.TracerProvider, shutdown func(context.Context) error) {
	lines := log.L.WithFields(log.Fields{"runtime": RuntimeName, "shim": id})
	report := func(err error) {
		lines.WithError(errors.New(errorText(err.Error()))).Warn("telemetry")
	}
	h, _ := readHostFile() // Create says what is wrong with it
	v, unknown, err := h.variables()
	if err != nil {
		lines.WithError(err).Warn("telemetry is off")
		return nil, nil
	}
	for _, key := range unknown {
		lines.Warnf("%s: %s: nothing reads it", h.path, key)
	}
	provider, flush := otlp.Setup(otlp.Shim{ID: id, Version: Version()}, v, report)
	return provider, func(ctx context.Context) error {
		if err := flush(ctx); err != nil {
			report(fmt.Errorf("flush: %w", err)) // which is no failure of the shim
		}
		return nil
	}
}
