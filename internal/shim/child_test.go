package shim

import (
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
)

func TestASignalEndsAProcessAsItWouldByDefault(t *testing.T) {
	survives := map[unix.Signal]bool{
		0: true, unix.SIGCHLD: true, unix.SIGURG: true, unix.SIGWINCH: true, unix.SIGCONT: true,
		unix.SIGSTOP: true, unix.SIGTSTP: true, unix.SIGTTIN: true, unix.SIGTTOU: true,
	}
	for sig := unix.Signal(0); sig <= lastSignal; sig++ {
		if got, want := terminates(sig), !survives[sig]; got != want {
			t.Errorf("signal %d: got %v, want %v", int(sig), got, want)
		}
	}
}

func TestTheClientIsToldTheSignalItSent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		signal unix.Signal
		status int
		want   int
	}{
		{"no signal", 0, 3, 3},
		{"SIGTERM", unix.SIGTERM, 137, 143},
		{"SIGKILL", unix.SIGKILL, 137, 137},
		{"a real-time signal", 64, 137, 192},
		{"killed by somebody else", 0, 137, 137},
		{"ended of itself meanwhile", unix.SIGTERM, 0, 0},
		{"ended by another signal meanwhile", unix.SIGTERM, 139, 139},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &child{signal: tt.signal, status: tt.status}
			if got := p.reported(); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestASignalThatCannotBeSentHasItsClass(t *testing.T) {
	gone := &child{pid: 1, exited: make(chan struct{})}
	close(gone.exited)
	for _, tt := range []struct {
		sig  unix.Signal
		want error
	}{
		{-1, errdefs.ErrInvalidArgument}, {lastSignal + 1, errdefs.ErrInvalidArgument}, {unix.SIGKILL, errdefs.ErrNotFound}, {0, errdefs.ErrNotFound},
	} {
		if err := gone.kill(tt.sig); !errors.Is(err, tt.want) {
			t.Errorf("signal %d: got %v, want %v", int(tt.sig), err, tt.want)
		}
	}
}

func TestOnlyASignalIsTheReasonOfAnEnd(t *testing.T) {
	for _, tt := range []struct {
		status int
		failed bool
	}{{0, false}, {1, false}, {128, false}, {137, true}, {143, true}} {
		if got := killedBy(tt.status, tt.status); (got != nil) != tt.failed {
			t.Errorf("status %d: got %v", tt.status, got)
		}
	}
}

func TestAFileInMemoryHasWhatWasPutIntoIt(t *testing.T) {
	want := map[string]string{"a": "b"}
	f, err := memfd("state", want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got map[string]string
	if err := json.NewDecoder(io.NewSectionReader(f, 0, 1<<20)).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := memfd("state", func() {}); err == nil {
		t.Error("what cannot be marshalled: got no error")
	}
}

func TestTheModulesFaultIsTheClients(t *testing.T) {
	for _, tt := range []struct {
		kind instance.ErrorKind
		want bool
	}{{instance.BadRequest, true}, {instance.StaleCache, false}, {instance.Internal, false}} {
		if got := errors.Is(classify(&instance.Error{Text: "no", Kind: tt.kind}), errdefs.ErrInvalidArgument); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.kind, got, tt.want)
		}
	}
	if got := classify(io.EOF); !errors.Is(got, io.EOF) || errors.Is(got, errdefs.ErrInvalidArgument) {
		t.Errorf("got %v, want %v", got, io.EOF)
	}
}
