package instance

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

func connected(t *testing.T) (one, other *Conn) {
	t.Helper()
	one, f, err := NewConn()
	if err != nil {
		t.Fatal(err)
	}
	other = &Conn{f: f}
	t.Cleanup(func() { one.Close(); other.Close() })
	return one, other
}

// testFiles are n open files with their number in them.
func testFiles(t *testing.T, n int) (files []*os.File) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, []byte(fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

func TestAMessageArrivesAsItWasSent(t *testing.T) {
	for _, tt := range []struct {
		name  string
		m     Message
		files int
	}{
		{"load", Message{Load: &module.Entry{Path: "/app/main.wasm", Func: "add", Argv0: "main.wasm"}}, 0},
		{"compile with the module", Message{Compile: true}, 1},
		{"start", Message{Start: true}, 0},
		{"ready", Message{Ready: true}, 0},
		{"nothing", Message{}, 0},
		{"as many descriptors as there may be", Message{Ready: true}, 4},
		{"a long one", Message{Load: &module.Entry{Path: strings.Repeat("x", maxMessage-100)}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one, other := connected(t)
			if err := one.Send(tt.m, testFiles(t, tt.files)...); err != nil {
				t.Fatal(err)
			}
			got, files, err := other.Receive(tt.files)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.m) {
				t.Errorf("got %+v, want %+v", got, tt.m)
			}
			if len(files) != tt.files {
				t.Fatalf("got %d descriptors, want %d", len(files), tt.files)
			}
			for i, f := range files {
				data, err := io.ReadAll(f)
				if err != nil || string(data) != fmt.Sprint(i) {
					t.Errorf("descriptor %d: got %q, %v", i, data, err)
				}
				if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor %d would be inherited", i)
				}
				f.Close()
			}
		})
	}
}

func TestMessagesKeepTheirOrderAndTheirBounds(t *testing.T) {
	one, other := connected(t)
	for i := range 20 {
		if err := one.Send(Message{Load: &module.Entry{Path: fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		got, _, err := other.Receive(0)
		if err != nil || got.Load == nil || got.Load.Path != fmt.Sprint(i) {
			t.Fatalf("got %+v, %v, want message %d", got, err, i)
		}
	}
}

func TestSentDescriptorsStayTheSenders(t *testing.T) {
	one, _ := connected(t)
	files := testFiles(t, 1)
	if err := one.Send(Message{Compile: true}, files...); err != nil {
		t.Fatal(err)
	}
	if _, err := files[0].Stat(); err != nil {
		t.Error(err)
	}
}

// The write end of a pipe tells by EPIPE that every read end has been closed.
func TestDescriptorsOfAMessageThatIsRefusedAreClosed(t *testing.T) {
	for _, tt := range []struct {
		name       string
		m          Message
		sent, want int
	}{
		{"one too many", Message{Ready: true}, 2, 1},
		{"one too few", Message{Compile: true}, 1, 2},
		{"more than there may be", Message{Ready: true}, 5, 4},
		{"with an error", Message{Error: &Error{Text: "no", Kind: Internal}}, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one, other := connected(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			var files []*os.File
			for range tt.sent {
				files = append(files, r)
			}
			err = one.Send(tt.m, files...)
			r.Close()
			if err != nil {
				t.Fatal(err)
			}
			_, files, err = other.Receive(tt.want)
			if err == nil || len(files) > 0 {
				t.Errorf("got %d descriptors, %v, want an error", len(files), err)
			}
			if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
				t.Errorf("got %v, want %v: a descriptor is still open", err, unix.EPIPE)
			}
		})
	}
	t.Run("one that nobody asked for", func(t *testing.T) {
		one, other := connected(t)
		other.walled = true
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		err = one.Send(Message{Ready: true}, r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		if m, files, err := other.Receive(0); err != nil || !m.Ready || len(files) > 0 {
			t.Errorf("got %+v, %d descriptors, %v, want the message alone", m, len(files), err)
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("got %v, want %v: the descriptor is still open", err, unix.EPIPE)
		}
	})
	t.Run("none where one is wanted", func(t *testing.T) {
		one, other := connected(t)
		if err := one.Send(Message{Compile: true}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := other.Receive(1); err == nil {
			t.Error("got no error")
		}
	})
}

func TestAnErrorMessageComesBackAsTheError(t *testing.T) {
	one, other := connected(t)
	want := Error{Text: "entry point /app: no", Kind: StaleCache}
	if err := one.Send(Message{Error: &want}); err != nil {
		t.Fatal(err)
	}
	_, _, err := other.Receive(0)
	var got *Error
	if !errors.As(err, &got) || *got != want {
		t.Errorf("got %v, want %v", err, &want)
	}
}

func TestAnErrorIsMetBeforeTheNumberOfDescriptors(t *testing.T) {
	one, other := connected(t)
	if err := one.Send(Message{Error: &Error{Text: "no", Kind: BadRequest}}); err != nil {
		t.Fatal(err)
	}
	_, _, err := other.Receive(1)
	var got *Error
	if !errors.As(err, &got) {
		t.Errorf("got %v, want the error", err)
	}
}

func TestAPeerThatIsGoneIsTheEndOfFile(t *testing.T) {
	one, other := connected(t)
	if err := one.Send(Message{Ready: true}); err != nil {
		t.Fatal(err)
	}
	one.Close()
	if m, _, err := other.Receive(0); err != nil || !m.Ready {
		t.Errorf("what was sent before: got %+v, %v", m, err)
	}
	if _, _, err := other.Receive(0); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want %v", err, io.EOF)
	}
	if err := other.Send(Message{Ready: true}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v, want %v", err, unix.EPIPE)
	}
}

// The largest of the two messages that a process gets, and the last, have room in a
// socket that nobody reads; one with no room left is lost, and no wait.
func TestSendDoesNotWaitForThePeer(t *testing.T) {
	one, other := connected(t)
	for _, m := range []Message{{Load: &module.Entry{Path: strings.Repeat("x", maxMessage-100)}}, {Start: true}} {
		if err := one.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	for range 10_000 {
		if err := one.Send(Message{Start: true}); errors.Is(err, unix.EAGAIN) {
			if m, _, err := other.Receive(0); err != nil || m.Load == nil {
				t.Errorf("what was sent first: got %+v, %v", m, err)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("the socket has room for everything")
}

func TestAfterHangUpThereIsOnlyWhatHasArrived(t *testing.T) {
	one, other := connected(t)
	if err := other.Send(Message{Ready: true}); err != nil {
		t.Fatal(err)
	}
	if err := one.HangUp(); err != nil {
		t.Fatal(err)
	}
	if m, _, err := one.Receive(0); err != nil || !m.Ready {
		t.Errorf("got %+v, %v, want what was sent before", m, err)
	}
	if _, _, err := one.Receive(0); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want %v", err, io.EOF)
	}
	if err := other.Send(Message{Ready: true}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v, want %v", err, unix.EPIPE)
	}
}

// Nor to be closed by it: the kernel drops them.
func TestDescriptorsThatAreNotWantedLeaveNothingOpen(t *testing.T) {
	one, other := connected(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := one.Send(Message{Ready: true}, slices.Repeat([]*os.File{r}, 250)...); err != nil {
		t.Fatal(err)
	}
	r.Close()
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.Receive(0); err == nil {
		t.Error("got no error")
	}
	after, err := os.ReadDir("/proc/self/fd")
	if err != nil || len(after) != len(before) {
		t.Errorf("%d descriptors were open, %d are, %v", len(before), len(after), err)
	}
}

func TestAMessageThatIsTooLargeIsNotSent(t *testing.T) {
	one, other := connected(t)
	if err := one.Send(Message{Error: &Error{Text: strings.Repeat("x", maxMessage)}}); err == nil {
		t.Error("got no error")
	}
	if err := one.Send(Message{Ready: true}); err != nil {
		t.Fatal(err)
	}
	if m, _, err := other.Receive(0); err != nil || !m.Ready {
		t.Errorf("got %+v, %v, want only the next message", m, err)
	}
}

func TestAPacketThatIsNoMessageIsAnError(t *testing.T) {
	for name, packet := range map[string]string{
		"no JSON":            "hello",
		"half a message":     `{"ready":tr`,
		"two messages":       `{"ready":true}{"ready":true}`,
		"another type":       `["ready"]`,
		"a wrong type":       `{"ready":"yes"}`,
		"larger than it may": strings.Repeat(" ", maxMessage) + `{"ready":true}`,
	} {
		t.Run(name, func(t *testing.T) {
			one, other := connected(t)
			if err := unix.Send(int(one.f.Fd()), []byte(packet), 0); err != nil {
				t.Fatal(err)
			}
			if m, _, err := other.Receive(0); err == nil {
				t.Errorf("got %+v, want an error", m)
			}
		})
	}
}

func TestTheReasonOfAFailureReachesTheShim(t *testing.T) {
	stale := &Error{Text: "compiled code: broken", Kind: StaleCache}
	for _, tt := range []struct {
		name string
		err  error
		want Error
	}{
		{"the module's fault, unless it says otherwise", errors.New("exports nothing"), Error{"exports nothing", BadRequest}},
		{"what it says", stale, *stale},
		{"what it says, wrapped", fmt.Errorf("entry point: %w", stale), *stale},
		{"a long text is cut", errors.New(strings.Repeat("x", 2*maxMessage)), Error{strings.Repeat("x", maxMessage/8), BadRequest}},
		{"a long text that JSON makes longer", errors.New(strings.Repeat("\x01", 2*maxMessage)), Error{strings.Repeat("\x01", maxMessage/8), BadRequest}},
		{"a long text of bytes that are no text", errors.New(strings.Repeat("\xff", 2*maxMessage)), Error{strings.Repeat("\ufffd", maxMessage/8), BadRequest}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one, other := connected(t)
			p := &process{control: one}
			if got, want := p.fail(tt.err), 1; got != want {
				t.Errorf("got status %d, want %d", got, want)
			}
			_, _, err := other.Receive(0)
			var got *Error
			if !errors.As(err, &got) || *got != tt.want {
				t.Errorf("got %.80v, want %.80v", err, &tt.want)
			}
		})
	}
}
