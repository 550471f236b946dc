package sandbox

import (
	"errors"
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
