package node

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"sort"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A File is a file of an image: what archive/tar says of it, and its bytes.
type File struct {
	tar.Header
	Data []byte
}

// Regular is a file with data, readable by all and executable by nobody.
func Regular(name string, data []byte) File {
	return File{Header: tar.Header{Name: name, Mode: 0o644}, Data: data}
}

// Program is a file with data that everybody may execute.
func Program(name string, data []byte) File {
	return File{Header: tar.Header{Name: name, Mode: 0o755}, Data: data}
}

// Image makes an image of one layer with the given files, and unpacks it. Its
// configuration is an ordinary Linux one.
func (n *Node) Image(ctx context.Context, name string, config ocispec.ImageConfig, files ...File) (containerd.Image, error) {
	ctx = n.Context(ctx)
	ctx, done, err := n.Client.WithLease(ctx)
	if err != nil {
		return nil, err
	}
	defer done(ctx)
	layer, err := archive(files)
	if err != nil {
		return nil, err
	}
	ld, err := n.blob(ctx, ocispec.MediaTypeImageLayer, layer, nil)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{ld.Digest}},
	})
	if err != nil {
		return nil, err
	}
	cd, err := n.blob(ctx, ocispec.MediaTypeImageConfig, data, nil)
	if err != nil {
		return nil, err
	}
	data, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cd, Layers: []ocispec.Descriptor{ld},
	})
	if err != nil {
		return nil, err
	}
	// What keeps containerd's garbage collector off the image's parts.
	md, err := n.blob(ctx, ocispec.MediaTypeImageManifest, data, map[string]string{
		"containerd.io/gc.ref.content.config": cd.Digest.String(),
		"containerd.io/gc.ref.content.l.0":    ld.Digest.String(),
	})
	if err != nil {
		return nil, err
	}
	record := images.Image{Name: name, Target: md}
	if n.opts.CRI {
		record.Labels = map[string]string{"io.cri-containerd.image": "managed"}
	}
	if _, err := n.Client.ImageService().Create(ctx, record); errdefs.IsAlreadyExists(err) {
		_, err = n.Client.ImageService().Update(ctx, record)
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	image := containerd.NewImage(n.Client, record)
	return image, image.Unpack(ctx, "")
}

func (n *Node) blob(ctx context.Context, mediaType string, data []byte, labels map[string]string) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err := content.WriteBlob(ctx, n.Client.ContentStore(), d.Digest.String(), bytes.NewReader(data), d, content.WithLabels(labels))
	if err != nil {
		return d, fmt.Errorf("blob: %w", err)
	}
	return d, nil
}

// archive is a tar of the files and of the directories that they are in.
func archive(files []File) ([]byte, error) {
	have := map[string]bool{".": true}
	var dirs []string
	for _, f := range files {
		if f.Typeflag == tar.TypeDir {
			have[path.Clean(f.Name)] = true
		}
	}
	for _, f := range files {
		for d := path.Dir(path.Clean(f.Name)); !have[d]; d = path.Dir(d) {
			have[d] = true
			dirs = append(dirs, d)
		}
	}
	sort.Strings(dirs)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, d := range dirs {
		if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		h := f.Header
		h.Size = int64(len(f.Data))
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}
