package image

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
)

// Files is an image, for one platform, that is a root file system.
type Files struct {
	Config ocispec.ImageConfig
	Parent string // the snapshot that containerd makes of its layers
}

// Files are those of the image with the given name, each once, for any platform
// whose manifest is there.
func (c *Client) Files(ctx context.Context, name string) (found []*Files, err error) {
	fail := func(err error) ([]*Files, error) { return nil, fmt.Errorf("image %s: %w", name, err) }
	all, err := c.manifests(ctx, name)
	if err != nil {
		return fail(err)
	}
	for _, m := range all {
		data, err := c.read(ctx, *m.Config)
		if m.indexed && errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fail(err)
		}
		var config ocispec.Image
		if err := json.Unmarshal(data, &config); err != nil {
			return fail(invalid("config %s: %w", m.Config.Digest, err))
		}
		if len(config.RootFS.DiffIDs) == 0 {
			continue
		}
		f := &Files{config.Config, identity.ChainID(config.RootFS.DiffIDs).String()}
		same := func(o *Files) bool {
			return o.Parent == f.Parent && slices.Equal(o.Config.Entrypoint, f.Config.Entrypoint)
		}
		if !slices.ContainsFunc(found, same) {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		return fail(fmt.Errorf("none of its configurations with layers is in the content store: %w", errdefs.ErrFailedPrecondition))
	}
	return found, nil
}

// viewTime is how long containerd keeps a view of one who was killed.
const viewTime = time.Hour

// View has the snapshotter make a view of the snapshot parent, and returns how it is
// mounted. The caller calls release.
func (c *Client) View(ctx context.Context, snapshotter, parent string) (mounts []mount.Mount, release func() error, err error) {
	lease, err := call(ctx, c, leasesapi.NewLeasesClient(c.conn).Create, &leasesapi.CreateRequest{
		Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(viewTime).UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	id := lease.GetLease().GetID()
	release = func() error { // with what it is for
		_, err := call(context.WithoutCancel(ctx), c, leasesapi.NewLeasesClient(c.conn).Delete, &leasesapi.DeleteRequest{ID: id, Sync: true})
		return err
	}
	view, err := call(metadata.AppendToOutgoingContext(ctx, "containerd-lease", id), c, snapshotsapi.NewSnapshotsClient(c.conn).View,
		&snapshotsapi.ViewSnapshotRequest{Snapshotter: snapshotter, Key: "wazero-compile-" + id, Parent: parent})
	if err != nil {
		_ = release() // the error at hand says more
		if errdefs.IsNotFound(err) {
			err = fmt.Errorf("it has not been unpacked for the snapshotter %s: %w", snapshotter, err)
		}
		return nil, nil, err
	}
	for _, m := range view.GetMounts() {
		mounts = append(mounts, mount.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return mounts, release, nil
}

// Root is the directory that the containerd has its content and all else in.
func (c *Client) Root(ctx context.Context) (string, error) {
	resp, err := call(ctx, c, introspectionapi.NewIntrospectionClient(c.conn).Plugins,
		&introspectionapi.PluginsRequest{Filters: []string{"type==io.containerd.content.v1,id==content"}})
	if err != nil {
		return "", err
	}
	for _, p := range resp.GetPlugins() {
		if root := p.GetExports()["root"]; root != "" {
			return path.Dir(root), nil
		}
	}
	return "", fmt.Errorf("containerd does not say where its root is: %w", errdefs.ErrNotFound)
}
