// Package image finds the module of a container whose image has it as a layer, and
// not as a file of a root file system; and reads it. Both by containerd's API.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// patience is how long containerd may take for an answer, or for the next piece of
// one: all it has to do for it is read a local disk.
var patience = 30 * time.Second

// A Client asks a containerd of images in one of its namespaces.
type Client struct {
	conn      *grpc.ClientConn
	namespace string
}

// NewClient returns a client of the containerd whose socket is at address. It
// connects when it is used; the caller closes it.
func NewClient(address, namespace string) (*Client, error) {
	if address == "" {
		return nil, fmt.Errorf("containerd: its address is not known: %w", errdefs.ErrUnavailable)
	}
	conn, err := grpc.NewClient("unix:"+strings.TrimPrefix(address, "unix://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	return &Client{conn: conn, namespace: namespace}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// outgoing is ctx for a call: it names the namespace, and the span that it is made in.
func (c *Client) outgoing(ctx context.Context) context.Context {
	return telemetry.Outgoing(namespaces.WithNamespace(ctx, c.namespace))
}

var errPatience = fmt.Errorf("containerd does not answer: %w", errdefs.ErrUnavailable)

// call makes one.
func call[Request, Response any](ctx context.Context, c *Client, f func(context.Context, *Request, ...grpc.CallOption) (*Response, error), r *Request) (*Response, error) {
	ctx, cancel := context.WithTimeoutCause(c.outgoing(ctx), patience, errPatience)
	defer cancel()
	resp, err := f(ctx, r)
	if err != nil {
		return nil, native(ctx, err)
	}
	return resp, nil
}

// native takes an error of a call off the wire.
func native(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return errgrpc.ToNative(err)
}

// Of finds the module of the image that a container was made from. Remapped says that
// the container has a user namespace.
//
// # Errors
//
//   - [ErrNoArtifact]: the image has none but, perhaps, as a file; or there is no image
//   - errdefs.ErrInvalidArgument: an image that nothing can be run of
//   - errdefs.ErrFailedPrecondition: another image has that name by now, or something
//     of it is no longer there
//   - errdefs.ErrUnavailable: containerd does not answer
//
// See "Why is an image looked up by its digest?".
func (c *Client) Of(ctx context.Context, container string, remapped bool) (*Module, error) {
	resp, err := call(ctx, c, containersapi.NewContainersClient(c.conn).Get, &containersapi.GetContainerRequest{ID: container})
	if errdefs.IsNotFound(err) { // whoever has made it did it without containerd
		return nil, ErrNoArtifact
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", container, err)
	}
	record := resp.GetContainer()
	if record.GetImage() == "" {
		return nil, ErrNoArtifact
	}
	name := record.GetImage()
	m, err := c.of(ctx, record, remapped)
	if err != nil && !errors.Is(err, ErrNoArtifact) {
		err = fmt.Errorf("image %s: %w", name, gone(err))
	}
	if m != nil {
		m.Image = name
	}
	return m, err
}

// gone makes of what is not there a fault of the image: to whoever asked for the
// container, that is there.
func gone(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%v: %w", err, errdefs.ErrFailedPrecondition) //nolint:errorlint // or it would be both
	}
	return err
}

func (c *Client) of(ctx context.Context, record *containersapi.Container, remapped bool) (*Module, error) {
	target, config, err := c.target(ctx, record)
	if err != nil {
		return nil, err
	}
	w := wanted{config: config}
	if record.SnapshotKey != "" {
		parent, err := c.parent(ctx, record.Snapshotter, record.SnapshotKey)
		if err != nil {
			return nil, err
		}
		w.parents = append(w.parents, parent)
		if remapped && parent != "" { // it may be a copy for the users of the namespace
			if parent, err = c.parent(ctx, record.Snapshotter, parent); err != nil {
				return nil, err
			}
			w.parents = append(w.parents, parent)
		}
	}
	m, err := find(ctx, c.read, target, w)
	if err != nil {
		return nil, err
	}
	info, err := call(ctx, c, contentapi.NewContentClient(c.conn).Info, &contentapi.InfoRequest{Digest: m.Digest.String()})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", m.Digest, err)
	}
	if size := info.GetInfo().GetSize(); size != m.Size {
		return nil, invalid("layer %s: the content store has %d bytes, the manifest says %d", m.Digest, size, m.Size)
	}
	return m, nil
}

// parent is the name of the snapshot that one was made from; empty for none.
func (c *Client) parent(ctx context.Context, snapshotter, key string) (string, error) {
	resp, err := call(ctx, c, snapshotsapi.NewSnapshotsClient(c.conn).Stat, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: key})
	if err != nil {
		return "", fmt.Errorf("snapshot %s: %w", key, err)
	}
	return resp.GetInfo().GetParent(), nil
}

// criMetadata is what CRI has on record with a container, as far as it tells which
// image it was made from.
type criMetadata struct {
	Metadata struct {
		ImageRef    digest.Digest // of the configuration
		ImageDigest digest.Digest // of the index or manifest; since containerd 2.4
	}
}

const criExtension = "io.cri-containerd.container.metadata"

// target is the image that a container was made from, and the digest of its
// configuration, if that is on record.
//
// The record of a container has but the name of its image, which by now may be
// another's. CRI has a record of its own.
func (c *Client) target(ctx context.Context, record *containersapi.Container) (target ocispec.Descriptor, config digest.Digest, err error) {
	var cri criMetadata
	if e := record.Extensions[criExtension]; e != nil {
		_ = json.Unmarshal(e.Value, &cri) // of another version: it says nothing then
	}
	if cri.Metadata.ImageRef.Validate() != nil {
		cri.Metadata.ImageRef = ""
	}
	config = cri.Metadata.ImageRef
	if d := cri.Metadata.ImageDigest; config != "" && d.Validate() == nil {
		return ocispec.Descriptor{Digest: d, Size: unknownSize}, config, nil
	}
	image, err := c.image(ctx, record.Image)
	if config != "" { // CRI has given the image that name, too, which nobody else gives away
		if byID, e := c.image(ctx, config.String()); e == nil {
			image, err = byID, nil
		}
	}
	if err != nil {
		return target, "", err
	}
	target = targetOf(image)
	_, named, _ := strings.Cut(record.Image, "@")
	switch {
	case config != "":
	case named == target.Digest.String():
	case named != "":
		return target, "", fmt.Errorf("it has the digest %s by now: create the container anew: %w", target.Digest, errdefs.ErrFailedPrecondition)
	case image.GetUpdatedAt().AsTime().After(record.GetCreatedAt().AsTime()):
		return target, "", fmt.Errorf("the name was given to an image after the container was created, and which it was then is not on record: create the container anew: %w", errdefs.ErrFailedPrecondition)
	}
	return target, config, nil
}

// image is containerd's record of the image with the given name.
func (c *Client) image(ctx context.Context, name string) (*imagesapi.Image, error) {
	resp, err := call(ctx, c, imagesapi.NewImagesClient(c.conn).Get, &imagesapi.GetImageRequest{Name: name})
	return resp.GetImage(), err
}

// targetOf describes the index or manifest that an image is.
func targetOf(image *imagesapi.Image) ocispec.Descriptor {
	t := image.GetTarget()
	return ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}
}

// manifests are those of the image with the given name: see [manifests].
func (c *Client) manifests(ctx context.Context, name string) ([]manifest, error) {
	image, err := c.image(ctx, name)
	if err != nil {
		return nil, err
	}
	return manifests(ctx, c.read, targetOf(image))
}

// Named finds the modules of the image with the given name, each once, for any
// platform whose manifest is there. [ErrNoArtifact] where none has any.
func (c *Client) Named(ctx context.Context, name string) (modules []*Module, err error) {
	all, err := c.manifests(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	have := map[digest.Digest]*Module{}
	for _, m := range all {
		layers, _ := m.modules()
		for _, l := range layers {
			if have[l.Digest] == nil {
				have[l.Digest] = &Module{Image: name, Digest: l.Digest, Size: l.Size}
				modules = append(modules, have[l.Digest])
			}
			if m.platform != "" {
				have[l.Digest].Platforms = append(have[l.Digest].Platforms, m.platform)
			}
		}
	}
	if len(modules) == 0 {
		return nil, fmt.Errorf("image %s: %w", name, ErrNoArtifact)
	}
	return modules, nil
}
