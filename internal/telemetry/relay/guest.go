package relay

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Calls of a guest, as the frames of its pipe name them.
const (
	SpanEnter = "enter"
	SpanExit  = "exit"
	SpanTags  = "tags"
	Log       = "log"
	Metric    = "metric"
)

// What a guest may send. The same bounds hold in the process, so that a guest costs
// it little, and in the shim, which does not trust it.
const (
	// GuestBurst is how many calls of a guest are taken at once. The end of a span is
	// not counted.
	GuestBurst = 500
	// GuestRate is how many are taken a second, in the long run.
	GuestRate = 100
	// MaxDepth bounds how deep spans of a guest nest.
	MaxDepth = 64
)

// GuestDropped is the attribute of a run that has how many calls of its guest came to
// nothing: too many, too deep, or without sense.
const GuestDropped = "wasm.guest.dropped"

// A GuestFrame is one call of a guest on the wire, a line of JSON as [Frame] is.
type GuestFrame struct {
	Call string `json:"call"`
	At   int64  `json:"at"` // nanoseconds since 1970
	// Depth is of the span that is entered or exited, and of the one that is open for
	// what is said of it: 0 for none, which is the run itself.
	Depth int `json:"depth,omitempty"`
	// Level is that of a log, or the format of a metric, as the guest gave it.
	Level   uint32 `json:"level,omitempty"`
	Text    string `json:"text,omitempty"`
	Dropped int64  `json:"dropped,omitempty"` // calls so far that have no frame
}

// A Guest is the end in the instance process of the pipe for what its guest sends. A
// nil one sends nothing. It is not for use by several threads at once.
type Guest struct {
	pipe    *os.File // keeps fd open
	fd      int
	bucket  *rate.Limiter
	depth   int
	sent    [MaxDepth]bool // of the spans that are open, by depth
	dropped int64
	// The ends of spans that the pipe had no room for yet: of those the shim knows to
	// be open, so no more than MaxDepth.
	owed []GuestFrame
}

// NewGuest sends to pipe.
func NewGuest(pipe *os.File) (*Guest, error) {
	fd := int(pipe.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return &Guest{pipe: pipe, fd: fd, bucket: rate.NewLimiter(GuestRate, GuestBurst)}, nil
}

// Close tells the shim that nothing comes.
func (g *Guest) Close() {
	if g != nil {
		g.pipe.Close()
	}
}

// Dropped is how many calls have been dropped.
func (g *Guest) Dropped() int64 {
	if g == nil {
		return 0
	}
	return g.dropped
}

// Enter begins a span. One without a name, nil, is dropped; like any that is, it has an
// end.
func (g *Guest) Enter(name []byte) {
	if g == nil {
		return
	}
	g.depth++
	switch {
	case g.depth > MaxDepth:
		g.dropped++
	case name == nil:
		g.dropped++
		g.sent[g.depth-1] = false
	default:
		g.sent[g.depth-1] = g.send(GuestFrame{Call: SpanEnter, Depth: g.depth}, name)
	}
}

// Exit ends the span that was begun last. Without one it does nothing.
func (g *Guest) Exit() {
	if g == nil || g.depth == 0 {
		return
	}
	depth := g.depth
	g.depth--
	if depth > MaxDepth || !g.sent[depth-1] {
		return
	}
	f := GuestFrame{Call: SpanExit, At: time.Now().UnixNano(), Depth: depth, Dropped: g.dropped}
	if !g.pay() || !g.write(f) {
		g.owed = append(g.owed, f)
	}
}

// Tags says something of the span that was begun last, or of the run.
func (g *Guest) Tags(tags []byte) { g.say(GuestFrame{Call: SpanTags}, tags) }

// Log is an event of the span that was begun last, or of the run.
func (g *Guest) Log(level uint32, message []byte) {
	g.say(GuestFrame{Call: Log, Level: level}, message)
}

// Metric counts or measures something.
func (g *Guest) Metric(format uint32, text []byte) {
	g.say(GuestFrame{Call: Metric, Level: format}, text)
}

// say sends what belongs to the innermost span that the shim knows of. What has no
// text, nil, is dropped.
func (g *Guest) say(f GuestFrame, text []byte) {
	if g == nil {
		return
	}
	if text == nil {
		g.dropped++
		return
	}
	f.Depth = min(g.depth, MaxDepth)
	for f.Depth > 0 && !g.sent[f.Depth-1] {
		f.Depth--
	}
	if f.Call == SpanTags && f.Depth != g.depth {
		g.dropped++ // those of a span that was dropped are no other's
		return
	}
	g.send(f, text)
}

// send writes a frame, if there may be one more, and there is room for it.
func (g *Guest) send(f GuestFrame, text []byte) bool {
	now := time.Now()
	f.At, f.Dropped = now.UnixNano(), g.dropped
	f.Text = string(text[:min(len(text), MaxText)])
	if g.bucket.AllowN(now, 1) && g.pay() && g.write(f) {
		return true
	}
	g.dropped++
	return false
}

// pay writes what is owed.
func (g *Guest) pay() bool {
	for i, f := range g.owed {
		if !g.write(f) {
			g.owed = g.owed[i:]
			return false
		}
	}
	g.owed = g.owed[:0]
	return true
}

func (g *Guest) write(f GuestFrame) bool {
	for limit := MaxText; limit > 0; limit /= 2 { // JSON may need six bytes for one
		f.Text = cut(f.Text, limit)
		line, err := json.Marshal(f)
		if err != nil {
			return false
		}
		if len(line) < MaxFrame {
			// One write of the descriptor itself: os.File would wait for room.
			_, err = unix.Write(g.fd, append(line, '\n'))
			for errors.Is(err, unix.EINTR) {
				_, err = unix.Write(g.fd, append(line, '\n'))
			}
			return err == nil
		}
	}
	return false
}
