package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

var moduleBytes = []byte("\x00asm\x01\x00\x00\x00")

// file writes a file of the given name in a new directory.
func file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// blobs are the files of an archive.
func blobs(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func decode[T any](t *testing.T, data []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %q", err, data)
	}
	return v
}

// That each form runs is for the shim's tests to show.
func TestForms(t *testing.T) {
	path := file(t, "App.wasm", moduleBytes)
	out := filepath.Join(t.TempDir(), "x.tar")
	made := func(t *testing.T, args ...string) (map[string][]byte, v1.Descriptor) {
		t.Helper()
		if err := run(append([]string{"-o", out}, args...), io.Discard); err != nil {
			t.Fatal(err)
		}
		files := blobs(t, out)
		return files, decode[v1.IndexManifest](t, files["index.json"]).Manifests[0]
	}
	blob := func(files map[string][]byte, h v1.Hash) []byte { return files["blobs/sha256/"+h.Hex] }
	for form, config := range map[string]string{"scratch": "application/vnd.oci.image.config.v1+json", "layers": "application/vnd.oci.image.config.v1+json", "artifact": artifactConfig} {
		t.Run(form, func(t *testing.T) {
			files, d := made(t, "-form", form, "-platform", "wasi/wasm", path, "--", "-v", "x")
			if got := d.Annotations["io.containerd.image.name"]; got != "example.com/app:latest" {
				t.Errorf("named %q", got)
			}
			m := decode[v1.Manifest](t, blob(files, d.Digest))
			if string(m.Config.MediaType) != config || len(m.Layers) != 1 {
				t.Errorf("manifest %+v", m)
			}
			if form != "scratch" && (m.Layers[0].MediaType != moduleLayer || !bytes.Equal(blob(files, m.Layers[0].Digest), moduleBytes)) {
				t.Errorf("layer %+v", m.Layers[0])
			}
			if form == "artifact" {
				c := decode[struct{ LayerDigests []string }](t, blob(files, m.Config.Digest))
				if !slices.Equal(c.LayerDigests, []string{m.Layers[0].Digest.String()}) {
					t.Errorf("configuration %+v", c)
				}
				return
			}
			c := decode[v1.ConfigFile](t, blob(files, m.Config.Digest))
			if c.OS != "wasi" || c.Architecture != "wasm" || !slices.Equal(c.Config.Entrypoint, []string{"/App.wasm", "-v", "x"}) || len(c.RootFS.DiffIDs) != map[string]int{"scratch": 1}[form] {
				t.Errorf("configuration %+v", c)
			}
			if !bytes.Contains(blob(files, m.Config.Digest), []byte(`"diff_ids":[`)) {
				t.Error("no list of diff_ids")
			}
		})
	}
	t.Run("for several platforms", func(t *testing.T) {
		files, d := made(t, "-form=layers", "-name", "example.org/a/b:v2", path)
		var got []string
		layers := map[v1.Hash]bool{}
		for _, m := range decode[v1.IndexManifest](t, blob(files, d.Digest)).Manifests {
			got = append(got, m.Platform.String())
			layers[decode[v1.Manifest](t, blob(files, m.Digest)).Layers[0].Digest] = true
		}
		if !slices.Equal(got, []string{"linux/amd64", "linux/arm64"}) || len(layers) != 1 || d.Annotations["org.opencontainers.image.ref.name"] != "v2" {
			t.Errorf("%v, layers %v, %v", got, layers, d.Annotations)
		}
	})
	t.Run("the same again", func(t *testing.T) {
		for form := range forms {
			made(t, "-form", form, path)
			first, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			made(t, "-form", form, path)
			if second, err := os.ReadFile(out); err != nil || !bytes.Equal(first, second) {
				t.Errorf("%s: another archive, %v", form, err)
			}
		}
	})
}

func TestBadInput(t *testing.T) {
	good := file(t, "app.wasm", moduleBytes)
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"no module", nil, []string{"0 modules"}},
		{"two", []string{good, good}, []string{"2 modules"}},
		{"none that is there", []string{"/no/such.wasm"}, []string{"/no/such.wasm", "no such file"}},
		{"a directory", []string{"/tmp"}, []string{"/tmp", "not a regular file"}},
		{"an empty file", []string{file(t, "x.wasm", nil)}, []string{"x.wasm", "empty"}},
		{"garbage", []string{file(t, "x.wasm", []byte("garbage!"))}, []string{"x.wasm", "not a WebAssembly module"}},
		{"a component", []string{file(t, "x.wasm", []byte("\x00asm\x0d\x00\x01\x00"))}, []string{"x.wasm", "preview 2"}},
		{"text", []string{file(t, "x.wat", []byte(";; x\n(module)"))}, []string{"x.wat", "wat2wasm"}},
		{"a Linux program", []string{"/proc/self/exe"}, []string{"Linux program"}},
		{"an unknown form", []string{"-form", "tar", good}, []string{"tar", "scratch, layers and artifact"}},
		{"a name that is none", []string{"-name", "A B", good}, []string{"-name", "A B"}},
		{"a platform that is none", []string{"-platform", "linux", good}, []string{"-platform", "linux"}},
		{"no platform", []string{"-platform", "", good}, []string{"-platform"}},
		{"an unknown option", []string{"-x", good}, []string{"-x"}},
		{"nowhere to write", []string{"-o", "/no/such/x.tar", good}, []string{"write /no/such/x.tar", "no such file"}},
		{"what cannot be written", []string{"-o", "/proc/x.tar", good}, []string{"write /proc/x.tar"}},
		{"a directory in its place", []string{"-o", filepath.Dir(good), good}, []string{"write " + filepath.Dir(good)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := run(tt.args, io.Discard)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q: does not say %q", err, w)
				}
			}
		})
	}
	if names, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(good)), "*", ".image-*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}
