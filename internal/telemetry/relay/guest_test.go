package relay

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

func newTestGuest(t *testing.T) (*os.File, *Guest) {
	t.Helper()
	r, w := newPipe(t)
	g, err := NewGuest(w)
	if err != nil {
		t.Fatal(err)
	}
	return r, g
}

// guestFrames are all that is in the pipe.
func guestFrames(t *testing.T, r *os.File, g *Guest) (frames []GuestFrame) {
	t.Helper()
	g.Close()
	lines := bufio.NewReaderSize(r, MaxFrame)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return frames
		}
		var f GuestFrame
		if err := json.Unmarshal(line, &f); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		frames = append(frames, f)
	}
}

func calls(frames []GuestFrame) (calls []string) {
	for _, f := range frames {
		calls = append(calls, f.Call)
	}
	return calls
}

func TestACallOfAGuestIsALine(t *testing.T) {
	r, g := newTestGuest(t)
	began := time.Now().UnixNano()
	g.Log(2, []byte("before"))
	g.Enter([]byte("a\nb\xff"))
	g.Enter([]byte{})
	g.Tags([]byte("k:v"))
	g.Metric(1, []byte("n:1|c"))
	g.Exit()
	g.Exit()
	got := guestFrames(t, r, g)
	for i := range got {
		if got[i].At < began || got[i].At > time.Now().UnixNano() || i > 0 && got[i].At < got[i-1].At {
			t.Errorf("%s at %d", got[i].Call, got[i].At)
		}
		got[i].At = 0
	}
	want := []GuestFrame{
		{Call: Log, Level: 2, Text: "before"},
		{Call: SpanEnter, Depth: 1, Text: "a\nb\ufffd"}, {Call: SpanEnter, Depth: 2},
		{Call: SpanTags, Depth: 2, Text: "k:v"}, {Call: Metric, Depth: 2, Level: 1, Text: "n:1|c"},
		{Call: SpanExit, Depth: 2}, {Call: SpanExit, Depth: 1},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestLongTextsOfAGuestAreCutSoThatTheLineIsOneWrite(t *testing.T) {
	for char, want := range map[string]int{"x": MaxText, "\x01": MaxText / 2} {
		r, g := newTestGuest(t)
		g.Log(1, []byte(strings.Repeat(char, 20*MaxFrame)))
		got := guestFrames(t, r, g)
		if len(got) != 1 || got[0].Text != strings.Repeat(char, want) {
			t.Errorf("%q: got %+v, want %d of it", char, got, want)
		}
	}
}

// The spans within one that was dropped are their ancestor's, and so are their logs;
// no end is sent of what has not begun.
func TestSpansThatAreTooManyAreDroppedAndCounted(t *testing.T) {
	r, g := newTestGuest(t)
	g.bucket = rate.NewLimiter(0, 3)
	g.Enter([]byte("a"))
	g.Enter([]byte("b"))
	g.Exit()
	g.Log(1, []byte("last"))
	g.Enter([]byte("c"))
	g.Tags([]byte("of:c"))
	g.Exit()
	g.Exit()
	got := guestFrames(t, r, g)
	if want := []string{SpanEnter, SpanEnter, SpanExit, Log, SpanExit}; !slices.Equal(calls(got), want) || g.Dropped() != 2 {
		t.Errorf("got %v, dropped %d, want %v, 2", calls(got), g.Dropped(), want)
	}
	if last := got[len(got)-1]; last.Depth != 1 || last.Dropped != 2 {
		t.Errorf("got %+v, want the end of a, and how many were dropped", last)
	}
}

func TestSpansThatAreTooDeepAreDroppedWithTheirEnds(t *testing.T) {
	r, g := newTestGuest(t)
	const deep = 3 * MaxDepth
	for range deep {
		g.Enter([]byte("a"))
	}
	g.Log(1, []byte("of the innermost that is sent"))
	for range deep + 10 {
		g.Exit()
	}
	g.Enter([]byte("b"))
	got := guestFrames(t, r, g)
	if len(got) != 2*MaxDepth+2 || g.Dropped() != deep-MaxDepth {
		t.Fatalf("got %d frames, dropped %d", len(got), g.Dropped())
	}
	if log := got[MaxDepth]; log.Depth != MaxDepth {
		t.Errorf("got %+v", log)
	}
	if last := got[len(got)-1]; last.Depth != 1 || last.Call != SpanEnter {
		t.Errorf("got %+v", last)
	}
}

// What is not there was not said, but the end that follows is of that span.
func TestTextsThatTheGuestDoesNotHaveAreDropped(t *testing.T) {
	r, g := newTestGuest(t)
	g.Enter([]byte("a"))
	g.Enter(nil)
	g.Tags(nil)
	g.Log(1, nil)
	g.Metric(1, nil)
	g.Exit()
	g.Exit()
	if got, want := calls(guestFrames(t, r, g)), []string{SpanEnter, SpanExit}; !slices.Equal(got, want) || g.Dropped() != 4 {
		t.Errorf("got %v, dropped %d, want %v, 4", got, g.Dropped(), want)
	}
}

// That it comes to an end is half of the test: nobody reads. The ends that there was no
// room for come first when there is some.
func TestAFullPipeCostsAGuestWhatItSaysAndNoEndOfASpan(t *testing.T) {
	r, g := newTestGuest(t)
	g.bucket = rate.NewLimiter(rate.Inf, 1)
	for range MaxDepth {
		g.Enter([]byte("open"))
	}
	for n := g.Dropped(); g.Dropped() == n; {
		g.Log(1, []byte(strings.Repeat("x", 100)))
	}
	for n := g.Dropped(); g.Dropped() == n; { // what was less than a line
		g.Log(1, []byte{})
	}
	for range MaxDepth {
		g.Exit()
	}
	g.Enter([]byte("dropped"))
	g.Exit()
	go func() {
		time.Sleep(10 * time.Millisecond)
		g.pipe.Close()
	}()
	if len(g.owed) != MaxDepth {
		t.Fatalf("owes %d ends, want %d", len(g.owed), MaxDepth)
	}
	// Room for all of it.
	if _, err := io.ReadFull(r, make([]byte, 32<<10)); err != nil {
		t.Fatal(err)
	}
	g.Enter([]byte("after"))
	if len(g.owed) > 0 {
		t.Errorf("owes %d ends still", len(g.owed))
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range strings.Split(string(rest), "\n") {
		var f GuestFrame
		if json.Unmarshal([]byte(line), &f) == nil && f.Call != Log {
			got = append(got, f.Call+f.Text)
		}
	}
	want := append(slices.Repeat([]string{SpanExit}, MaxDepth), SpanEnter+"after")
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestANilGuestSendsNothing(t *testing.T) {
	var g *Guest
	g.Enter([]byte("a"))
	g.Tags([]byte("k:v"))
	g.Log(1, []byte("x"))
	g.Metric(1, []byte("x"))
	g.Exit()
	g.Close()
	if g.Dropped() != 0 {
		t.Error("it has dropped something")
	}
}

func TestAGuestNeedsAPipe(t *testing.T) {
	_, w := newPipe(t)
	w.Close()
	if _, err := NewGuest(w); err == nil {
		t.Error("got no error")
	}
}

// BenchmarkSpan is what a span costs the process whose guest makes it.
func BenchmarkSpan(b *testing.B) {
	for name, limit := range map[string]rate.Limit{"sent": rate.Inf, "dropped": 0} {
		b.Run(name, func(b *testing.B) {
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = io.Copy(io.Discard, r)
			}()
			g, err := NewGuest(w)
			if err != nil {
				b.Fatal(err)
			}
			g.bucket = rate.NewLimiter(limit, 0)
			name := []byte("handle request")
			for b.Loop() {
				g.Enter(name)
				g.Exit()
			}
			b.ReportMetric(float64(g.Dropped())/float64(b.N), "dropped/op")
			g.Close()
			<-done
		})
	}
}
