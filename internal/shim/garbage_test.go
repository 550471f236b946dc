package shim

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestMemoryIsGivenBackAfterACollectionAndOnlyThen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	forced := func() uint32 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NumForcedGC
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	const after = 5 * time.Millisecond
	before := forced()
	giveBack(ctx, after)
	time.Sleep(20 * after)
	if got := forced() - before; got != 0 {
		t.Fatalf("%d collections though there has been none", got)
	}
	for round := range uint32(2) {
		runtime.GC()
		want := 2 * (round + 1) // that one, and the one that gives back
		for deadline := time.Now().Add(5 * time.Second); forced()-before < want; time.Sleep(after) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: nothing is given back", round)
			}
		}
		time.Sleep(20 * after)
		if got := forced() - before; got != want {
			t.Fatalf("round %d: %d collections, want %d: what it frees itself is no reason", round, got, want)
		}
	}
	end()
	runtime.GC()
	time.Sleep(20 * after)
	if got, want := forced()-before, uint32(5); got != want {
		t.Errorf("%d collections after the end, want %d", got, want)
	}
}
