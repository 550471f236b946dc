package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/image"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// What is located is the module that a process is to run.
type located struct {
	entry module.Entry
	id    module.Identity
	open  module.Opener
	close io.Closer // once it has been compiled, or not
}

// A layer is the module of a container whose image has it as a layer. Its processes
// call it what the first of them does.
type layer struct {
	*image.Module
	name string
}

// findLayer is the module of a process whose first argument names no file: a layer
// of the container's image, if that has a module for one. Else it returns notFound.
//
// See "What does an artifact's first argument name?".
func (p *process) findLayer(ctx context.Context, notFound error) (_ *located, err error) {
	c := p.container
	notFound = fmt.Errorf("%w: %w", notFound, errdefs.ErrInvalidArgument)
	entry, err := module.LayerEntry(p.spec.Args[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if p.execID != "" && (c.layer == nil || c.layer.name != entry.Argv0) {
		return nil, notFound
	}
	client, err := image.NewClient(c.host.containerd, c.host.namespace)
	if err != nil {
		return nil, fmt.Errorf("%w, and of its image: %w", notFound, err)
	}
	defer func() {
		if err != nil {
			client.Close()
		}
	}()
	if p.execID == "" {
		var m *image.Module
		err = telemetry.Stage(ctx, telemetry.ImageResolve, func(ctx context.Context) (err error) {
			m, err = client.Of(ctx, c.id, c.bundle.ids != nil)
			if errors.Is(err, image.ErrNoArtifact) {
				return nil // it is for the stage around this one to fail
			}
			return err
		})
		switch {
		case err != nil && errdefs.IsUnavailable(err):
			return nil, fmt.Errorf("%w, and of its image: %w", notFound, err)
		case err != nil:
			return nil, fmt.Errorf("entry point %s: %w", entry.Argv0, err)
		case m == nil:
			return nil, notFound
		}
		c.layer = &layer{m, entry.Argv0}
	}
	m := c.layer.Module
	id := module.Identity{Digest: m.Digest.String(), Size: m.Size}
	trace.SpanFromContext(ctx).SetAttributes(telemetry.ModuleSource.String(telemetry.ModuleSourceLayer),
		telemetry.ModuleDigest.String(id.Digest), telemetry.ModuleSize.Int64(id.Size))
	open := func(ctx context.Context) (f *os.File, err error) {
		err = telemetry.Stage(ctx, telemetry.LayerRead, func(ctx context.Context) (err error) {
			f, err = client.Open(ctx, m, c.host.state)
			var path *fs.PathError
			if errors.As(err, &path) { // full, read-only or not there: as the cache may be
				f, err = client.Open(ctx, m, c.bundle.path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if err := module.Check(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("image %s: %w: %w", m.Image, err, errdefs.ErrInvalidArgument)
		}
		return f, nil
	}
	return &located{entry, id, open, client}, nil
}
