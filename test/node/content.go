package node

import (
	"context"
	"net"
	"sync"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// A ContentStore is containerd's own, served by the test: as a proxy plugin for
// [Options.ContentStore], or for a client to read.
type ContentStore struct {
	content.Store
	server *grpc.Server
	served chan struct{}

	mu     sync.Mutex
	faults map[digest.Digest]func(p []byte, off int64, n int) (int, error) // guarded by mu
}

// ServeContent serves a store in dir at the address, until it is stopped.
func ServeContent(dir, address string) (*ContentStore, error) {
	store, err := local.NewStore(dir)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		return nil, err
	}
	s := &ContentStore{Store: store, server: grpc.NewServer(), served: make(chan struct{}), faults: map[digest.Digest]func([]byte, int64, int) (int, error){}}
	contentapi.RegisterContentServer(s.server, contentserver.New(s))
	go func() { // ends with Stop
		defer close(s.served)
		_ = s.server.Serve(l) // that it was stopped
	}()
	return s, nil
}

// Stop ends the server, in the middle of what it is at. It may be called again.
func (s *ContentStore) Stop() {
	s.server.Stop()
	<-s.served
}

// Break has fault make what it will of reads of a blob: n bytes of it have been read
// to p, from the offset.
func (s *ContentStore) Break(blob digest.Digest, fault func(p []byte, off int64, n int) (int, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[blob] = fault
}

// ReaderAt implements [content.Provider].
func (s *ContentStore) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	r, err := s.Store.ReaderAt(ctx, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if fault := s.faults[d.Digest]; err == nil && fault != nil {
		r = faulty{r, fault}
	}
	return r, err
}

type faulty struct {
	content.ReaderAt
	fault func(p []byte, off int64, n int) (int, error)
}

// ReadAt implements [io.ReaderAt].
func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.ReaderAt.ReadAt(p, off)
	if n == 0 {
		return n, err
	}
	return f.fault(p, off, n)
}
