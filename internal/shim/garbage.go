package shim

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// startTime is how long a shim may take to have its first container running
	// before it begins to collect garbage: once its heap is larger than collectPercent
	// wants it.
	startTime      = time.Second
	collectPercent = 40
	// giveBackTime is how long what a collection has freed is kept: giving it back is
	// another collection.
	giveBackTime = 30 * time.Second
)

// lateGarbage puts off the collection of garbage until a shim has started, and gives
// memory back to the kernel after it. It ends with ctx.
func lateGarbage(ctx context.Context) {
	debug.SetGCPercent(-1)
	time.AfterFunc(startTime, func() {
		if ctx.Err() == nil {
			debug.SetGCPercent(collectPercent)
		}
	})
	giveBack(ctx, giveBackTime)
}

// giveBack gives memory back some time after a collection. A shim that has had none is
// left alone: its first takes more, for the structures of the collector, than it frees.
func giveBack(ctx context.Context, after time.Duration) {
	freed := new([16]byte) // smaller ones may share a block that is not freed
	runtime.AddCleanup(freed, func(ctx context.Context) {
		time.AfterFunc(after, func() {
			if ctx.Err() == nil {
				debug.FreeOSMemory()
				giveBack(ctx, after)
			}
		})
	}, ctx)
}
