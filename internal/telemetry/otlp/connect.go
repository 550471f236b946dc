package otlp

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// reconnecting is how a collector that is away is tried again. By gRPC's own ways
// up to two minutes would pass until one that is back is noticed: what was exported
// meanwhile would be lost, since an export is tried for 10 s.
var reconnecting = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
	MinConnectTimeout: 5 * time.Second,
}
