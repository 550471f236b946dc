package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// Media types of a layer that is a module.
const (
	// MediaTypeModule is the one of the CNCF's OCI artifact for wasm.
	//
	// See https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/.
	MediaTypeModule = "application/wasm"
	// MediaTypeComponent is that of a component, and of a module by those tools that
	// make no difference.
	MediaTypeComponent = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
	// MediaTypeContent is the one that registries of the first hour gave it.
	MediaTypeContent = "application/vnd.wasm.content.layer.v1+wasm"

	// MediaTypeConfig is that of the configuration of the CNCF's artifact.
	MediaTypeConfig = "application/vnd.wasm.config.v0+json"
)

// What docker calls a manifest, an index and the layers.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerLayers   = "application/vnd.docker.image.rootfs."
)

// Prefixes of other layers of a root file system.
const (
	ociLayers   = "application/vnd.oci.image.layer."
	erofsLayers = "application/vnd.erofs.layer."
)

const (
	// maxDocument bounds a manifest, an index or a configuration, bytes. Registries
	// take no larger manifest.
	maxDocument = 4 << 20
	// maxManifests bounds how many manifests and indexes of an image are read.
	maxManifests = 64
	// maxNamed bounds how many layers an error names.
	maxNamed = 4
)

// A Module is a layer of an image that is one.
type Module struct {
	Image string // the name of the image
	// Digest is that of the layer and so of the module: by SHA-256.
	Digest digest.Digest
	Size   int64 // bytes
	// Platforms are those of the image that have it; none where it has no index.
	Platforms []string
}

// ErrNoArtifact says that an image is an ordinary one: all of its layers are of a
// root file system.
var ErrNoArtifact = errors.New("an ordinary image, without a module for a layer")

// isModule tells whether a layer of a media type is a module.
func isModule(mediaType string) bool {
	return mediaType == MediaTypeModule || mediaType == MediaTypeComponent || mediaType == MediaTypeContent
}

// isFiles tells whether a layer of a media type is one of a root file system.
func isFiles(mediaType string) bool {
	return strings.HasPrefix(mediaType, ociLayers) || strings.HasPrefix(mediaType, dockerLayers) || strings.HasPrefix(mediaType, erofsLayers)
}

// A document is a manifest or an index: which one it is is not for its descriptor
// to say, which may be wrong or absent.
type document struct {
	MediaType string               `json:"mediaType"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
}

// parse reads a manifest or an index.
func parse(data []byte) (*document, error) {
	d := &document{}
	if err := json.Unmarshal(data, d); err != nil {
		return nil, err
	}
	// Nothing may be taken for the one by somebody and for the other by somebody else.
	index := d.Manifests != nil
	if index == (d.Config != nil || d.Layers != nil) {
		return nil, errors.New("neither an image manifest nor an index: has to have either layers and a config or manifests")
	}
	switch d.MediaType {
	case "":
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if index {
			return nil, fmt.Errorf("has manifests: not what its media type %s says", d.MediaType)
		}
	case ocispec.MediaTypeImageIndex, dockerIndex:
		if !index {
			return nil, fmt.Errorf("has layers: not what its media type %s says", d.MediaType)
		}
	default:
		return nil, fmt.Errorf("media type %q: neither an image manifest nor an index", d.MediaType)
	}
	if !index && d.Config == nil {
		return nil, errors.New("the manifest has no config")
	}
	if !index {
		if err := check(*d.Config, maxDocument); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	for _, m := range d.Manifests {
		if err := check(m, maxDocument); err != nil {
			return nil, err
		}
	}
	for _, l := range d.Layers {
		if isModule(l.MediaType) {
			if err := check(l, module.MaxSize); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// check looks whether what d describes can be read and recognised.
func check(d ocispec.Descriptor, most int64) error {
	switch err := d.Digest.Validate(); {
	case err != nil:
		return fmt.Errorf("%s %q: %w", d.MediaType, d.Digest, err)
	case d.Digest.Algorithm() != digest.SHA256:
		return fmt.Errorf("%s %s: the digest is not by SHA-256", d.MediaType, d.Digest)
	case d.Size < 0:
		return fmt.Errorf("%s %s: a size of %d bytes", d.MediaType, d.Digest, d.Size)
	case d.Size > most:
		return fmt.Errorf("%s %s: it has %d bytes: %d are the most", d.MediaType, d.Digest, d.Size, most)
	}
	return nil
}

// modules are the layers of a manifest that are one; others are the media types of
// those that are nothing known.
func (d *document) modules() (modules []ocispec.Descriptor, others []string) {
	for _, l := range d.Layers {
		switch {
		case isModule(l.MediaType):
			modules = append(modules, l)
		case !isFiles(l.MediaType):
			others = append(others, l.MediaType)
		}
	}
	return modules, others
}

// A reader reads the blob that a descriptor names, up to maxDocument bytes, and
// returns it only if it is that.
type reader func(ctx context.Context, d ocispec.Descriptor) ([]byte, error)

// A manifest is one of an image.
type manifest struct {
	document
	indexed  bool   // it is in an index
	platform string // as the index has it; may be empty
}

// manifests are those of the image that target is, in their order. Of what is in an
// index it is no matter if it is not there: clients fetch what is for their platform.
func manifests(ctx context.Context, read reader, target ocispec.Descriptor) ([]manifest, error) {
	var found []manifest
	queue := []manifest{{}}
	descriptors := []ocispec.Descriptor{target}
	for i := 0; i < len(queue); i++ {
		d := descriptors[i]
		data, err := read(ctx, d)
		if i > 0 && errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		doc, err := parse(data)
		if err != nil {
			return nil, invalid("%s: %w", d.Digest, err)
		}
		if doc.Manifests == nil {
			queue[i].document = *doc
			found = append(found, queue[i])
			continue
		}
		for _, m := range doc.Manifests {
			if m.Platform != nil && m.Platform.OS == "unknown" { // about an image: an attestation, by docker
				continue
			}
			if len(queue) > maxManifests {
				return nil, invalid("%s: an index of more than %d manifests", d.Digest, maxManifests)
			}
			platform := queue[i].platform
			if m.Platform != nil {
				platform = m.Platform.OS + "/" + m.Platform.Architecture
			}
			queue, descriptors = append(queue, manifest{indexed: true, platform: platform}), append(descriptors, m)
		}
	}
	return found, nil
}

// Wanted is what is known of the image of a container beside its name.
type wanted struct {
	config digest.Digest // of the configuration; empty: not known
	// Parents are what the root file system may have been made from: the digest of all
	// its layers, empty for none. Nil: not known.
	parents []string
}

// find finds the module of the image that target is.
//
// # Errors
//
//   - [ErrNoArtifact]: it has nothing but layers of a root file system
//   - errdefs.ErrInvalidArgument: two modules, none among layers of other types,
//     a document that is none
//   - errdefs.ErrFailedPrecondition: the container was made of another image
//   - whatever read returns
func find(ctx context.Context, read reader, target ocispec.Descriptor, w wanted) (*Module, error) {
	all, err := manifests(ctx, read, target)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("none of its manifests is in the content store: %w", errdefs.ErrFailedPrecondition)
	}
	var found *Module
	var others []string
	moved := true
	for _, m := range all {
		if w.config != "" && m.Config.Digest != w.config {
			continue
		}
		modules, unknown := m.modules()
		if len(modules) == 0 {
			moved = false
			others = append(others, unknown...)
			if m.Config.MediaType == MediaTypeConfig && len(unknown) == 0 {
				others = append(others, "")
			}
			continue
		}
		if w.parents != nil {
			parent, err := parentOf(ctx, read, m)
			if m.indexed && errdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if !slices.Contains(w.parents, parent) {
				continue
			}
		}
		moved = false
		if len(modules) > 1 {
			return nil, invalid("has %d layers that are a module, %s: only one can be run", len(modules), list(modules))
		}
		l := modules[0]
		if found == nil {
			found = &Module{Digest: l.Digest, Size: l.Size}
		}
		if l.Digest != found.Digest || l.Size != found.Size {
			return nil, invalid("has a module for %s, another one for %s, and which one is meant is not on record: name the manifest of one by its digest",
				strings.Join(found.Platforms, ", "), m.platform)
		}
		if m.platform != "" && !slices.Contains(found.Platforms, m.platform) {
			found.Platforms = append(found.Platforms, m.platform)
		}
	}
	switch {
	case found != nil:
		return found, nil
	case moved:
		return nil, fmt.Errorf("is not what the container was created from: create it anew: %w", errdefs.ErrFailedPrecondition)
	case len(others) > 0:
		return nil, invalid("has no layer that is a module (%s): %s", MediaTypeModule, listTypes(others))
	}
	return nil, ErrNoArtifact
}

// parentOf is the name of the snapshot that containerd makes of the layers of a
// manifest, empty where there are none.
func parentOf(ctx context.Context, read reader, m manifest) (string, error) {
	data, err := read(ctx, *m.Config)
	if err != nil {
		return "", err
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return "", invalid("config %s: %w", m.Config.Digest, err)
	}
	return identity.ChainID(config.RootFS.DiffIDs).String(), nil
}

func list(layers []ocispec.Descriptor) string {
	var names []string
	for _, l := range layers[:min(len(layers), maxNamed)] {
		names = append(names, l.Digest.String())
	}
	return strings.Join(names, ", ")
}

// listTypes names media types; an empty one stands for no layer at all.
func listTypes(types []string) string {
	types = slices.Compact(slices.Sorted(slices.Values(types)))
	if types[0] == "" {
		if types = types[1:]; len(types) == 0 {
			return "it has no layers of its own"
		}
	}
	for i, t := range types {
		types[i] = fmt.Sprintf("%q", t)
	}
	return "its layers are " + strings.Join(types[:min(len(types), maxNamed)], ", ")
}

// invalid is an error of an image.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), errdefs.ErrInvalidArgument)
}
