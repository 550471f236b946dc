package shim

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/stdio"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// reapChildren does for a test what package shim does for a shim.
func reapChildren(t *testing.T) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_ = reaper.Reap()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
}

// script is a logger that the shell runs.
func script(scheme, text string) string {
	return scheme + ":///bin/sh?" + url.Values{"-c": {text}}.Encode()
}

func openLogged(t *testing.T, uri string) (*streams, error) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	s, err := openStreams(ctx, "the-id", stdio.Stdio{Stdout: uri, Stderr: uri}, owner{})
	if err == nil {
		t.Cleanup(func() { s.close() })
	}
	return s, err
}

func TestALoggerGetsEverythingAndIsGoneAfterwards(t *testing.T) {
	reapChildren(t)
	for scheme, ready := range map[string]string{"binary": "exec 5>&-", "binary-v2": "echo >&5"} {
		dir := t.TempDir()
		// It is slow, and would not survive a SIGTERM.
		s, err := openLogged(t, script(scheme, ready+`; cd `+dir+`
			echo $$ $CONTAINER_NAMESPACE $CONTAINER_ID >who; sleep 0.3; cat <&3 >out; cat <&4 >err; sleep 0.3; echo done >end`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.child[1].WriteString("o\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.child[2].WriteString("e\n"); err != nil {
			t.Fatal(err)
		}
		s.drain(time.Minute)
		if err := s.close(); err != nil {
			t.Error(err)
		}
		if err := unix.Kill(s.logger.cmd.Process.Pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s: the logger is there after close: %v", scheme, err)
		}
		for name, want := range map[string]string{"out": "o\n", "err": "e\n", "end": "done\n"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
				t.Errorf("%s: %s has %q, %v, want %q", scheme, name, got, err, want)
			}
		}
		if who, err := os.ReadFile(filepath.Join(dir, "who")); !strings.HasSuffix(string(who), " ns the-id\n") {
			t.Errorf("%s: the logger is told %q, %v", scheme, who, err)
		}
	}
}

func TestALoggerThatIsNotReadyFails(t *testing.T) {
	reapChildren(t)
	for name, tt := range map[string]struct{ uri, says string }{
		"it does not exist":           {"binary:///no/such/logger", "stdout: logger /no/such/logger: fork/exec /no/such/logger: no such file"},
		"it has no path":              {"binary://logger", "logger"},
		"it dies":                     {script("binary", "exit 3"), "logger /bin/sh: it ended before it was ready: exit status 3"},
		"it dies of a signal":         {script("binary", "kill -9 $$"), "exit status 137"},
		"it dies, version 2":          {script("binary-v2", "exit 4"), "exit status 4"},
		"it says nothing, version 2":  {script("binary-v2", "exec 5>&-; cat <&3; exit 5"), "exit status 5"},
		"it closes its output":        {script("binary", "exec 3<&- 4<&- 5>&-; exit 6"), "exit status 6"},
		"a file that is not executed": {"binary:///etc/passwd", "/etc/passwd: permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openLogged(t, tt.uri)
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want one that says %q", err, tt.says)
			}
		})
	}
	t.Run("it is too late for the client", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "ns"), 50*time.Millisecond)
		defer cancel()
		_, err := openStreams(ctx, "id", stdio.Stdio{Stdout: script("binary", "exec sleep 1000")}, owner{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
	})
	t.Run("there is no namespace to tell it", func(t *testing.T) {
		if _, err := openStreams(t.Context(), "id", stdio.Stdio{Stdout: script("binary", "cat <&3")}, owner{}); err == nil {
			t.Error("got no error")
		}
	})
}

func TestALoggerThatDoesNotEndIsEnded(t *testing.T) {
	reapChildren(t)
	s, err := openLogged(t, script("binary", "trap '' TERM; exec 5>&-; while :; do sleep 1; done"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(s.logger.cmd.Process.Pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("it is there: %v", err)
	}
	if err := s.close(); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestThePipesOfALoggerHaveTheOwnerOfItsOptions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	reapChildren(t)
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	s, err := openStreams(ctx, "id", stdio.Stdio{Stdout: script("binary", "exec 5>&-; cat <&3 >/dev/null")}, owner{1234, 5678})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for i := 1; i <= 2; i++ {
		var st unix.Stat_t
		if err := unix.Fstat(int(s.child[i].Fd()), &st); err != nil || st.Uid != 1234 || st.Gid != 5678 {
			t.Errorf("stream %d: got %d:%d, %v", i, st.Uid, st.Gid, err)
		}
		if flags, err := unix.FcntlInt(s.child[i].Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("stream %d: got flags %#x, %v, want it to block", i, flags, err)
		}
	}
}

func TestATerminalWritesToALogger(t *testing.T) {
	reapChildren(t)
	out := filepath.Join(t.TempDir(), "out")
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	s, err := openStreams(ctx, "id", stdio.Stdio{Stdout: script("binary", "exec 5>&-; sleep 0.2; cat <&3 >"+out), Terminal: true}, owner{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.child[1].WriteString("text\n"); err != nil {
		t.Fatal(err)
	}
	s.handOver()
	s.drain(time.Minute)
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != "text\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
}
