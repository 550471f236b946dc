package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// store is containerd's content store with a blob of a few pieces, and a client.
func store(t *testing.T) (*node.ContentStore, *Client, *Module, []byte) {
	t.Helper()
	dir, err := os.MkdirTemp("", "image") // short: its address has to fit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := node.ServeContent(filepath.Join(dir, "content"), filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	c, err := NewClient(filepath.Join(dir, "sock"), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	data := bytes.Repeat([]byte("0123456789abcdef"), 200000) // more than is sent at a time
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(t.Context(), s.Store, "blob", bytes.NewReader(data), d); err != nil {
		t.Fatal(err)
	}
	return s, c, &Module{Image: "example.com/x", Digest: d.Digest, Size: d.Size}, data
}

func TestALayerIsReadWholeAndHasNoName(t *testing.T) {
	_, c, m, data := store(t)
	dir := t.TempDir()
	f, err := c.Open(t.Context(), m, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(data))
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestWhatIsNotTheLayerIsAnError(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault func(p []byte, off int64, n int) (int, error)
		want  string
	}{
		{"a bit is flipped", func(p []byte, _ int64, n int) (int, error) { p[0] ^= 1; return n, nil }, "does not match the digest"},
		{"it is cut short", func(_ []byte, _ int64, n int) (int, error) { return n / 2, io.EOF }, "its descriptor says 3200000"},
		{"there is none of it", func([]byte, int64, int) (int, error) { return 0, io.EOF }, "has 0 bytes of it"},
		{"it cannot be read", func([]byte, int64, int) (int, error) { return 0, errors.New("bad sector") }, "bad sector"},
		{"it cannot be read to its end", func(_ []byte, off int64, n int) (int, error) {
			if off > 0 {
				return 0, errors.New("bad sector")
			}
			return n, nil
		}, "bad sector"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, c, m, _ := store(t)
			s.Break(m.Digest, tt.fault)
			f, err := c.Open(t.Context(), m, t.TempDir())
			if err == nil {
				f.Close()
			}
			wantError(t, err, nil, "example.com/x", m.Digest.String(), tt.want)
			d := ocispec.Descriptor{Digest: m.Digest, Size: m.Size}
			_, err = c.read(t.Context(), d)
			wantError(t, err, nil, m.Digest.String(), tt.want)
		})
	}
	t.Run("it is longer than the manifest says", func(t *testing.T) {
		_, c, m, _ := store(t)
		m.Size--
		_, err := c.Open(t.Context(), m, t.TempDir())
		wantError(t, err, errdefs.ErrInvalidArgument, "more than 3199999 bytes")
	})
	t.Run("it is not there", func(t *testing.T) {
		_, c, m, _ := store(t)
		m.Digest = digest.FromString("another")
		_, err := c.Open(t.Context(), m, t.TempDir())
		wantError(t, err, errdefs.ErrFailedPrecondition, "not found")
	})
	t.Run("the directory to read it to", func(t *testing.T) {
		_, c, m, _ := store(t)
		_, err := c.Open(t.Context(), m, "/no/such")
		wantError(t, err, os.ErrNotExist, m.Digest.String())
	})
}

func TestADocumentIsBounded(t *testing.T) {
	_, c, m, data := store(t)
	if got, err := c.read(t.Context(), ocispec.Descriptor{Digest: m.Digest, Size: unknownSize}); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	_, err := c.read(t.Context(), ocispec.Descriptor{Digest: m.Digest, Size: maxDocument + 1})
	wantError(t, err, errdefs.ErrInvalidArgument, "are the most")
}

func TestAStoreThatGoesAway(t *testing.T) {
	reading := func(s *node.ContentStore, m *Module) (asked, release chan struct{}) {
		asked, release = make(chan struct{}, 100), make(chan struct{})
		s.Break(m.Digest, func(_ []byte, _ int64, n int) (int, error) {
			asked <- struct{}{}
			<-release
			return n, nil
		})
		return asked, release
	}
	open := func(ctx context.Context, c *Client, m *Module, dir string) chan error {
		done := make(chan error, 1)
		go func() {
			f, err := c.Open(ctx, m, dir)
			if err == nil {
				f.Close()
			}
			done <- err
		}()
		return done
	}
	t.Run("that dies in the middle", func(t *testing.T) {
		s, c, m, _ := store(t)
		asked, release := reading(s, m)
		done := open(t.Context(), c, m, t.TempDir())
		<-asked
		stopped := make(chan struct{})
		go func() { defer close(stopped); s.Stop() }()
		err := <-done
		close(release)
		wantError(t, err, errdefs.ErrUnavailable, m.Digest.String())
		<-stopped
	})
	t.Run("that hangs", func(t *testing.T) {
		defer func(d time.Duration) { patience = d }(patience)
		patience = 50 * time.Millisecond
		s, c, m, _ := store(t)
		_, release := reading(s, m)
		defer close(release)
		wantError(t, <-open(t.Context(), c, m, t.TempDir()), errdefs.ErrUnavailable, m.Digest.String(), "does not answer")
	})
	t.Run("whom nobody waits for any more", func(t *testing.T) {
		s, c, m, _ := store(t)
		asked, release := reading(s, m)
		defer close(release)
		ctx, cancel := context.WithCancelCause(t.Context())
		done := open(ctx, c, m, t.TempDir())
		<-asked
		reason := errors.New("given up")
		cancel(reason)
		wantError(t, <-done, reason)
	})
	t.Run("that removes it in the middle", func(t *testing.T) {
		s, c, m, _ := store(t)
		asked, release := reading(s, m)
		done := open(t.Context(), c, m, t.TempDir())
		<-asked
		if err := s.Delete(t.Context(), m.Digest); err != nil {
			t.Fatal(err)
		}
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("that is not there", func(t *testing.T) {
		c, err := NewClient("/no/such/socket", "test")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Of(t.Context(), "x", false)
		wantError(t, err, errdefs.ErrUnavailable, "/no/such/socket")
	})
	t.Run("that nobody has named", func(t *testing.T) {
		_, err := NewClient("", "test")
		wantError(t, err, errdefs.ErrUnavailable)
	})
}

func wantError(t *testing.T, err, class error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if class != nil && !errors.Is(err, class) {
		t.Errorf("error %q: want %v", err, class)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q: does not say %q", err, p)
		}
	}
}
