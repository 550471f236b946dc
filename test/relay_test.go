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
				if strings.HasPrefix(s.Name, "module.") && (s.Start.Before(began) || s.End.After(time.Now()) || s.Attrs["container.id"] != b.ID() || len(s.Status) > 1100) {
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

// The same by the pipe for what a guest sends.
func TestIfTheEngineBrokeTheGuestsPipeIsNoWayToTheShim(t *testing.T) {
	n, c := tracedNode(t, attackOptions(t))
	img := app(t, n, "observe-c.wasm")
	grouped := oci.WithAnnotations(map[string]string{groupAnnotation: newID(t)})
	neighbour := container(t, n, img, args("/app.wasm"), grouped)
	neighbour.mustCreate(t)
	shim := shimPID(t, n, neighbour.ID())
	rss := residentKiB(t, shim)
	for _, attack := range []string{"garbage", "lies", "depth", "metrics"} {
		t.Run(attack, func(t *testing.T) {
			began := time.Now()
			b, status := run(t, n, img, args("/app.wasm", "guest "+attack), grouped)
			if status != 0 {
				t.Errorf("exit status %d, %q", status, b.stderr)
			}
			r := reports(t, b.stdout.String())["guest "+attack]
			if len(r.Tries) == 0 || len(r.reached()) > 0 {
				t.Errorf("got %q", b.stdout)
			}
			if got := residentKiB(t, shim); got > rss+16<<10 {
				t.Errorf("the shim has grown from %d to %d KiB", rss, got)
			}
			life := trace(t, c, b.ID(), "module.start", "module.run", "task.create", "task.wait")
			made := 0
			for _, s := range c.Trace(life["task.create"].TraceID) {
				if s.Attrs["container.id"] != b.ID() && s.Attrs["container.id"] != "" || s.Start.Before(began) && s.Name != "shim.start" || s.End.After(time.Now()) || s.Attrs["k8s.pod.name"] != "" {
					t.Errorf("got %+v", s)
				}
				if s.Attrs["mine"] != "" {
					made++
				}
			}
			if attack == "lies" && made == 0 {
				t.Error("nothing that it said has come")
			}
		})
	}
	if got := c.Trace("4bf92f3577b34da6a3ce929d0e0e4736"); len(got) > 0 {
		t.Errorf("in a trace of the process's choosing: %+v", got)
	}
	neighbour.mustStart(t)
	if status := neighbour.exit(t); status != 0 || neighbour.stdout.String() != "observed \n" {
		t.Errorf("the neighbour: exit status %d, %q", status, neighbour.stdout)
	}
	neighbour.delete(t)
	own := trace(t, c, neighbour.ID(), "task.create", "work", "step", "module.run", "task.delete")
	for _, s := range c.Trace(own["task.create"].TraceID) {
		if s.Attrs["container.id"] != neighbour.ID() && s.Attrs["container.id"] != "" {
			t.Errorf("in the neighbour's trace: %+v", s)
		}
	}
}
