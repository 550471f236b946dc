package image

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// TestDocumentsThatAreNone are those that nobody may read one way and somebody
// another. What comes of images as they are is in the tests under a real containerd.
func TestDocumentsThatAreNone(t *testing.T) {
	config := `"config":{"mediaType":"application/vnd.wasm.config.v0+json","digest":"` + digest.FromString("c").String() + `","size":2}`
	layer := func(size int64) string {
		return fmt.Sprintf(`"layers":[{"mediaType":"application/wasm","digest":"%s","size":%d}]`, digest.FromString("l"), size)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"a manifest", `{` + config + `,` + layer(1) + `}`, ""},
		{"an index", `{"manifests":[]}`, ""},
		{"no JSON", `x`, "invalid character"},
		{"another JSON", `[]`, "cannot unmarshal"},
		{"nothing", `{}`, "neither"},
		{"both", `{"manifests":[],` + config + `}`, "neither"},
		{"a manifest without a configuration", `{` + layer(1) + `}`, "no config"},
		{"a manifest that calls itself an index", `{"mediaType":"application/vnd.oci.image.index.v1+json",` + config + `}`, "has layers"},
		{"an index that calls itself a manifest", `{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","manifests":[]}`, "has manifests"},
		{"a media type of something else", `{"mediaType":"text/plain","manifests":[]}`, "text/plain"},
		{"the first schema of docker", `{"schemaVersion":1,"fsLayers":[]}`, "neither"},
		{"a configuration that is too large", `{"config":{"digest":"` + digest.FromString("c").String() + `","size":5000000}}`, "are the most"},
		{"a layer that is too large", `{` + config + `,` + layer(module.MaxSize+1) + `}`, "are the most"},
		{"a layer of less than nothing", `{` + config + `,` + layer(-1) + `}`, "-1 bytes"},
		{"a digest that is none", `{"manifests":[{"digest":"x"}]}`, "invalid checksum digest format"},
	} {
		_, err := parse([]byte(tt.text))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestAnIndexIsReadUpToABound(t *testing.T) {
	self := ocispec.Descriptor{Digest: digest.FromString("self"), Size: 1}
	data, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{self, self}})
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	_, err = manifests(t.Context(), func(context.Context, ocispec.Descriptor) ([]byte, error) { reads++; return data, nil }, self)
	wantError(t, err, errdefs.ErrInvalidArgument, "more than 64 manifests")
	if reads > maxManifests {
		t.Errorf("read %d times", reads)
	}
}

// FuzzImage takes anything for the documents of an image, in the order in which they
// are asked for; that they are what their digests say is for whoever reads them.
func FuzzImage(f *testing.F) {
	d := func(s string) string { return digest.FromString(s).String() }
	index := `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + d("m") + `","size":9,"platform":{"os":"wasi","architecture":"wasm"}}]}`
	manifest := `{"config":{"mediaType":"application/vnd.wasm.config.v0+json","digest":"` + d("c") + `","size":2},"layers":[{"mediaType":"application/wasm","digest":"` + d("l") + `","size":3}]}`
	f.Add(manifest, `{}`, ``, "", "")
	f.Add(manifest, `{"rootfs":{"diff_ids":["`+d("x")+`"]}}`, ``, d("c"), d("x"))
	f.Add(index, manifest, `{"rootfs":{"type":"layers","diff_ids":[]}}`, "", "")
	f.Add(index, index, manifest, "", "")
	f.Add(`{"manifests":[{"platform":{"os":"unknown"},"digest":"x"}]}`, ``, ``, "", "")
	f.Add(strings.Replace(manifest, "sha256:", "sha512:", 1), `{}`, ``, "", "")
	f.Add(strings.Replace(manifest, `"size":3`, `"size":-3`, 1), `{}`, ``, "", "")
	f.Add(strings.Replace(manifest, "application/wasm", "application/x", 1), `{}`, ``, "", "")
	f.Add(`{"manifests":null,"layers":null}`, ``, ``, "", "")
	f.Fuzz(func(t *testing.T, first, second, third, config, parent string) {
		documents := []string{first, second, third}
		reads := 0
		read := func(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
			if reads++; reads > 2*maxManifests+1 {
				t.Fatalf("asked for %d documents", reads)
			}
			if err := check(d, maxDocument); err != nil && reads > 1 {
				t.Fatalf("asked for what cannot be: %v", err)
			}
			if reads > len(documents) {
				return nil, errdefs.ErrNotFound
			}
			return []byte(documents[reads-1]), nil
		}
		m, err := find(t.Context(), read, ocispec.Descriptor{Digest: digest.FromString("t"), Size: 1}, wanted{digest.Digest(config), []string{parent}})
		if (m == nil) == (err == nil) {
			t.Fatalf("got %v, %v", m, err)
		}
		if err != nil {
			return
		}
		if m.Digest.Validate() != nil || m.Digest.Algorithm() != digest.SHA256 || m.Size < 0 || m.Size > module.MaxSize {
			t.Errorf("a module that cannot be: %+v", m)
		}
		for _, doc := range documents { // it is one of a manifest that is meant
			if strings.Contains(doc, m.Digest.Encoded()) {
				return
			}
		}
		if !strings.Contains(strings.Join(documents, ""), `\u`) { // written otherwise
			t.Errorf("a module that is nowhere: %+v", m)
		}
	})
}
