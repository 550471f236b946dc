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
	m, err := Files(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, config, files...)
	if err != nil {
		return nil, err
	}
	image, err := n.Artifact(ctx, name, m)
	if err != nil {
		return nil, err
	}
	return image, image.Unpack(n.Context(ctx), "")
}

// A Layer is one of a manifest.
type Layer struct {
	MediaType string
	Data      []byte
}

// A Manifest is one of an image, which has an index if that is of more than one, or
// if that has a platform.
type Manifest struct {
	Platform   *ocispec.Platform
	ConfigType string
	Config     any
	Layers     []Layer
	Change     func(*ocispec.Manifest) // may be nil
}

// Files is the manifest of an ordinary image, of one layer with the given files.
func Files(p ocispec.Platform, config ocispec.ImageConfig, files ...File) (Manifest, error) {
	layer, err := archive(files)
	return Manifest{
		ConfigType: ocispec.MediaTypeImageConfig,
		Config:     ocispec.Image{Platform: p, Config: config, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}},
		Layers:     []Layer{{ocispec.MediaTypeImageLayer, layer}},
	}, err
}

// Artifact makes an image of the manifests, as they are, and does not unpack it. One
// of that name is no longer called that.
func (n *Node) Artifact(ctx context.Context, name string, manifests ...Manifest) (containerd.Image, error) {
	ctx = n.Context(ctx)
	ctx, done, err := n.Client.WithLease(ctx)
	if err != nil {
		return nil, err
	}
	defer done(ctx)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, m := range manifests {
		d, err := n.manifest(ctx, m)
		if err != nil {
			return nil, err
		}
		index.Manifests = append(index.Manifests, d)
	}
	target := index.Manifests[0]
	if len(manifests) > 1 || target.Platform != nil {
		if target, err = n.document(ctx, ocispec.MediaTypeImageIndex, index, index.Manifests); err != nil {
			return nil, err
		}
	}
	record := images.Image{Name: name, Target: target}
	image := containerd.NewImage(n.Client, record)
	if n.opts.CRI { // a pull gives it a second name, its ID, which keeps it when the first is moved
		config, err := image.Config(ctx)
		if err != nil {
			return nil, err
		}
		record.Labels = map[string]string{"io.cri-containerd.image": "managed"}
		if err := n.record(ctx, images.Image{Name: config.Digest.String(), Target: target, Labels: record.Labels}); err != nil {
			return nil, err
		}
	}
	return image, n.record(ctx, record)
}

// record makes the image that r describes, or what its name is of now.
func (n *Node) record(ctx context.Context, r images.Image) error {
	_, err := n.Client.ImageService().Create(ctx, r)
	if errdefs.IsAlreadyExists(err) {
		_, err = n.Client.ImageService().Update(ctx, r)
	}
	return err
}

func (n *Node) manifest(ctx context.Context, m Manifest) (d ocispec.Descriptor, err error) {
	content := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	if content.Config, err = n.document(ctx, m.ConfigType, m.Config, nil); err != nil {
		return d, err
	}
	content.Layers = []ocispec.Descriptor{}
	for _, l := range m.Layers {
		if d, err = n.blob(ctx, l.MediaType, l.Data, nil); err != nil {
			return d, err
		}
		content.Layers = append(content.Layers, d)
	}
	parts := append([]ocispec.Descriptor{content.Config}, content.Layers...)
	if m.Change != nil {
		m.Change(&content)
	}
	d, err = n.document(ctx, ocispec.MediaTypeImageManifest, content, parts)
	d.Platform = m.Platform
	return d, err
}

// document makes a blob of v as JSON, which keeps containerd's garbage collector off
// its parts.
func (n *Node) document(ctx context.Context, mediaType string, v any, parts []ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	labels := map[string]string{}
	for i, p := range parts {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", i)] = p.Digest.String()
	}
	return n.blob(ctx, mediaType, data, labels)
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
