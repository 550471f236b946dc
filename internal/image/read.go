package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// unknownSize is that of a blob of which only the digest is known.
const unknownSize = -1

// read is a [reader] of containerd's content store.
func (c *Client) read(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	known := d
	known.Size = max(d.Size, 0)
	if err := check(known, maxDocument); err != nil {
		return nil, invalid("%w", err)
	}
	var b bytes.Buffer
	if err := c.copyTo(ctx, &b, d, maxDocument); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	return b.Bytes(), nil
}

// Open reads a module, and returns it as a file that has no name and that nobody can
// write to. It is the module with the digest, or an error. It is read through a file
// in the directory dir, which nobody finds there.
func (c *Client) Open(ctx context.Context, m *Module, dir string) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("image %s: layer %s: %w", m.Image, m.Digest, gone(err))
		}
	}()
	w, err := unnamed(dir)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := c.copyTo(ctx, w, ocispec.Descriptor{Digest: m.Digest, Size: m.Size}, m.Size); err != nil {
		return nil, err
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
}

// unnamed opens a new file without a name, in dir, for writing.
func unnamed(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	if f, err = os.CreateTemp(dir, "layer-"); err != nil { // a file system that has no such files
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyTo copies the blob that d describes to w. What is not the blob is an error; no
// more than the given number of bytes is written for it.
//
// It is one stream, which containerd has the blob open for: removed meanwhile, it
// is whole all the same.
func (c *Client) copyTo(ctx context.Context, w io.Writer, d ocispec.Descriptor, most int64) error {
	if d.Size != unknownSize {
		most = min(most, d.Size)
	}
	ctx, cancel := context.WithCancelCause(c.outgoing(ctx))
	defer cancel(nil)
	watch := time.AfterFunc(patience, func() { cancel(errPatience) }) // as long as it goes on, it may take its time
	defer watch.Stop()
	stream, err := contentapi.NewContentClient(c.conn).Read(ctx, &contentapi.ReadContentRequest{Digest: d.Digest.String(), Size: most + 1})
	if err != nil {
		return native(ctx, err)
	}
	verifier := d.Digest.Verifier()
	var n int64
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return native(ctx, err)
		}
		watch.Reset(patience)
		if n += int64(len(resp.GetData())); n > most {
			return invalid("it has more than %d bytes", most)
		}
		if _, err := io.MultiWriter(verifier, w).Write(resp.GetData()); err != nil {
			return err
		}
	}
	if d.Size != unknownSize && n != d.Size {
		return invalid("the content store has %d bytes of it, its descriptor says %d", n, d.Size)
	}
	if !verifier.Verified() {
		return invalid("what the content store has does not match the digest")
	}
	return nil
}
