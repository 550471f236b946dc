package instance

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzReceive has a process send anything on the control socket, any number of
// descriptors with it: one message comes of it or an error, and no descriptor that
// was not asked for.
func FuzzReceive(f *testing.F) {
	for _, packet := range []string{
		`{"ready":true}`, `{"ready":true,"error":{"text":"no","kind":"stale-cache"}}`, `{"error":null}`, `{"error":{}}`, `{"error":{"kind":"nonsense","text":"` + "\xff" + `"}}`,
		`{"load":{"path":"/a"},"start":true}`, `{"compile":true}`, `null`, `[]`, ``, `{`, `{"ready":1}`, `{"ready":false,"ready":true,"READY":false}`, "\x00", strings.Repeat("[", 20000),
		strings.Repeat(" ", maxMessage-14) + `{"ready":true}`, strings.Repeat(" ", maxMessage) + `{"ready":true}`,
	} {
		f.Add([]byte(packet), byte(0), byte(0))
		f.Add([]byte(packet), byte(1), byte(0))
		f.Add([]byte(packet), byte(1), byte(1))
		f.Add([]byte(packet), byte(250), byte(1))
	}
	f.Fuzz(func(t *testing.T, packet []byte, sent, wanted byte) {
		sent, wanted = min(sent, 253), wanted%5 // the kernel's SCM_MAX_FD
		packet = packet[:min(len(packet), 2*maxMessage)]
		shim, theirs, err := NewConn()
		if err != nil {
			t.Fatal(err)
		}
		defer shim.Close()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		fds := make([]int, sent)
		for i := range fds {
			fds[i] = int(r.Fd())
		}
		err = unix.Sendmsg(int(theirs.Fd()), packet, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		r.Close()
		theirs.Close()
		if err != nil {
			t.Fatal(err)
		}
		m, files, err := shim.Receive(int(wanted))
		if err == nil && (len(files) != int(wanted) || sent != wanted || m.Error != nil || len(packet) == 0) {
			t.Errorf("got %+v and %d descriptors of %d, want %d", m, len(files), sent, wanted)
		}
		if err != nil && len(files) > 0 {
			t.Errorf("got %d descriptors with %v", len(files), err)
		}
		for _, f := range files {
			f.Close()
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("got %v: a descriptor is still open", err)
		}
	})
}
