package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Media types of the CNCF's OCI artifact for wasm.
//
// See https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/.
const (
	moduleLayer    = "application/wasm"
	artifactConfig = "application/vnd.wasm.config.v0+json"
)

// options are what an image is made of.
type options struct {
	module    []byte
	file      string   // what the module is called in the image
	args      []string // of the module
	platforms []v1.Platform
	mediaType string // of the module as a layer
}

// A form makes an image: an index where it is for some platforms, else a manifest.
type form func(options) (mutate.Appendable, error)

// entrypoint has the module run, with its arguments.
func (o options) entrypoint() []string { return append([]string{"/" + o.file}, o.args...) }

// scratch makes an image of one layer of files, with the module in it.
func scratch(o options) (mutate.Appendable, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: o.file, Mode: 0o755, Size: int64(len(o.module))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(o.module); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	id, err := layer.DiffID()
	if err != nil {
		return nil, err
	}
	return o.perPlatform(layer, id)
}

// layers makes an image whose layer is the module, and that has no files.
func layers(o options) (mutate.Appendable, error) {
	return o.perPlatform(static.NewLayer(o.module, types.MediaType(o.mediaType)))
}

// perPlatform makes an index of an image for each platform, which differ in nothing else;
// for a single one it makes the image alone. Of diffIDs there is one for each layer of files.
func (o options) perPlatform(layer v1.Layer, diffIDs ...v1.Hash) (mutate.Appendable, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range o.platforms {
		config := v1.ConfigFile{
			OS: p.OS, Architecture: p.Architecture, Variant: p.Variant,
			Config: v1.Config{Entrypoint: o.entrypoint()},
			RootFS: v1.RootFS{Type: "layers", DiffIDs: append([]v1.Hash{}, diffIDs...)},
		}
		image, err := newImage(layer, config, types.OCIConfigJSON)
		if err != nil {
			return nil, err
		}
		if len(o.platforms) == 1 {
			return image, nil
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &p}})
	}
	return index, nil
}

// artifact makes the CNCF's artifact. Its configuration names the layer: to CRI, an image
// is what its configuration is.
func artifact(o options) (mutate.Appendable, error) {
	layer := static.NewLayer(o.module, types.MediaType(o.mediaType))
	digest, err := layer.Digest()
	if err != nil {
		return nil, err
	}
	return newImage(layer, struct {
		Architecture string   `json:"architecture"`
		OS           string   `json:"os"`
		LayerDigests []string `json:"layerDigests"`
	}{"wasm", "wasip1", []string{digest.String()}}, artifactConfig)
}

// An image has one layer and any configuration.
type image struct {
	layer            v1.Layer
	manifest, config []byte
}

func newImage(layer v1.Layer, config any, configType types.MediaType) (v1.Image, error) {
	i := &image{layer: layer}
	var err error
	if i.config, err = json.Marshal(config); err != nil {
		return nil, err
	}
	l, err := partial.Descriptor(layer)
	if err != nil {
		return nil, err
	}
	c, err := partial.Descriptor(static.NewLayer(i.config, configType))
	if err != nil {
		return nil, err
	}
	i.manifest, err = json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: *c, Layers: []v1.Descriptor{*l}})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(i)
}

// MediaType implements [partial.CompressedImageCore].
func (i *image) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// RawManifest implements [partial.CompressedImageCore].
func (i *image) RawManifest() ([]byte, error) { return i.manifest, nil }

// RawConfigFile implements [partial.CompressedImageCore].
func (i *image) RawConfigFile() ([]byte, error) { return i.config, nil }

// LayerByDigest implements [partial.CompressedImageCore].
func (i *image) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) { return i.layer, nil }
