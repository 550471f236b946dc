package test

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
)

// The same as by TestAProcessThatWritesAnythingIntoTheRelayIsNoHarm, from within the
// walls: by native code where the guest would run.
func TestIfTheEngineBrokeTheRelayIsNoWayToTheShim(t *testing.T) {
	n, c := tracedNode(t, attackOptions(t))
	img := app(t, n, "hello.wasm")
	grouped := oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)})
	neighbour := container(t, n, img, args("/app.wasm"), grouped)
	neighbour.mustCreate(t)
	shim := shimPID(t, n, neighbour.ID())
	for _, attack := range []string{"garbage", "torn", "lies", "flood", "spans"} {
		t.Run(attack, func(t *testing.T) {
			rss := residentKiB(t, shim)
			began := time.Now()
			b, status := run(t, n, img, args("/app.wasm", "relay "+attack), grouped)
			if status != 0 {
				t.Errorf("exit status %d, %q", status, b.stderr)
			}
			r := reports(t, b.stdout.String())["relay "+attack]
			if len(r.Tries) == 0 || len(r.reached()) > 0 {
				t.Errorf("got %q", b.stdout)
			}
			if got := residentKiB(t, shim); got > rss+16<<10 {
				t.Errorf("the shim has grown from %d to %d KiB", rss, got)
			}
			life := trace(t, c, b.ID(), "module.start", "module.run", "task.delete")
			for _, s := range c.Trace(life["task.create"].TraceID) {
				if strings.HasPrefix(s.Name, "module.") && (s.Start.Before(began) || s.End.After(time.Now()) || s.Attrs["container.id"] != "" || len(s.Status) > 1100) {
					t.Errorf("got %+v", s)
				}
			}
		})
	}
	if got := c.Trace("4bf92f3577b34da6a3ce929d0e0e4736"); len(got) > 0 {
		t.Errorf("in a trace of the process's choosing: %+v", got)
	}
	neighbour.mustStart(t)
	if status := neighbour.exit(t); status != 0 || neighbour.stdout.String() != "hello\n" {
		t.Errorf("the neighbour: exit status %d, %q", status, neighbour.stdout)
	}
	neighbour.delete(t)
}
