package sandbox

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAThreadRunsEverythingOnOneThreadOfItsOwn(t *testing.T) {
	th := newThread()
	defer th.close()
	seen := map[int]bool{}
	for range 20 {
		if err := th.do(func() error { seen[unix.Gettid()] = true; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := len(seen), 1; got != want {
		t.Errorf("got %d threads, want %d", got, want)
	}
	failure := errors.New("failed")
	if got := th.do(func() error { return failure }); !errors.Is(got, failure) {
		t.Errorf("got %v, want %v", got, failure)
	}
}

// It is the one that /proc/self shows, and it does not end with a goroutine.
func TestAThreadIsNeverTheMainOne(t *testing.T) {
	for range 1000 {
		th := newThread()
		err := th.do(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("the main thread")
			}
			return nil
		})
		th.close()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatAThreadStartsHasASessionKeyringOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TEST_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: run `sudo make test`")
	}
	keyring := func() (id int) {
		t.Helper()
		thread := newThread()
		defer thread.close()
		if err := thread.do(func() (err error) {
			if err := confine(); err != nil {
				return err
			}
			id, err = unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
			return err
		}); errors.Is(err, unix.ENOSYS) {
			t.Skip("a kernel without keys")
		} else if err != nil {
			t.Fatal(err)
		}
		return id
	}
	mine, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil && !errors.Is(err, unix.ENOKEY) && !errors.Is(err, unix.ENOSYS) {
		t.Fatal(err)
	}
	if one, other := keyring(), keyring(); one == other || one == mine {
		t.Errorf("keyrings %d and %d, and %d of the test", one, other, mine)
	}
}
