package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// What an image may be, see docs/images.md: the module of one is a file, or a layer.

const (
	moduleLayer = "application/wasm"
	wasmConfig  = "application/vnd.wasm.config.v0+json"
)

var (
	moduleLayers = []string{moduleLayer, "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", "application/vnd.wasm.content.layer.v1+wasm"}
	entrypoint   = ocispec.ImageConfig{Entrypoint: []string{"/app.wasm"}}

	linuxPlatform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	wasiPlatform  = ocispec.Platform{OS: "wasi", Architecture: "wasm"}
	wasip1        = ocispec.Platform{OS: "wasip1", Architecture: "wasm"}
)

func moduleOf(data []byte) node.Layer { return node.Layer{MediaType: moduleLayer, Data: data} }

// layered is a manifest with an ordinary configuration, and no files.
func layered(p ocispec.Platform, layers ...node.Layer) node.Manifest {
	return node.Manifest{
		ConfigType: ocispec.MediaTypeImageConfig,
		Config:     ocispec.Image{Platform: p, Config: entrypoint, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []godigest.Digest{}}},
		Layers:     layers,
	}
}

// cncf is the manifest of the CNCF's artifact.
func cncf(layers ...node.Layer) node.Manifest {
	digests := []godigest.Digest{}
	for _, l := range layers {
		digests = append(digests, godigest.FromBytes(l.Data))
	}
	return node.Manifest{
		ConfigType: wasmConfig,
		Config:     map[string]any{"architecture": "wasm", "os": "wasip1", "layerDigests": digests},
		Layers:     layers,
	}
}

// fileImage is the manifest of an image with the guest at /app.wasm.
func fileImage(t *testing.T, p ocispec.Platform, data []byte) node.Manifest {
	t.Helper()
	m, err := node.Files(p, entrypoint, node.Regular("app.wasm", data), node.Regular("etc/motd", []byte("a file of the image\n")))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// in is a manifest in an index, for the platform.
func in(p ocispec.Platform, m node.Manifest) node.Manifest {
	m.Platform = &p
	return m
}

// artifact makes an image that has not been unpacked.
func artifact(t *testing.T, n *node.Node, manifests ...node.Manifest) containerd.Image {
	t.Helper()
	img, err := n.Artifact(t.Context(), "example.com/"+strings.ToLower(newID(t))+":latest", manifests...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// another is a module like the given one, and another: it has a section more.
func another(data []byte, name string) []byte {
	section := append([]byte{byte(len(name))}, name...)
	return append(append(append([]byte{}, data...), 0, byte(len(section))), section...)
}

// ctrRun is what ctr prints, running an image, and its exit status.
func ctrRun(t *testing.T, n *node.Node, args ...string) (string, int) {
	t.Helper()
	cmd := n.Ctr(t.Context(), append([]string{"run", "--rm", "--runtime=" + node.Runtime}, args...)...)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func TestEveryFormOfImageRuns(t *testing.T) {
	n := useNode(t)
	probe, hello := guest(t, "probe.wasm"), guest(t, "hello.wasm")
	forms := []struct {
		name, platform string
		manifests      []node.Manifest
	}{
		{"a file of an ordinary image", "", []node.Manifest{fileImage(t, linuxPlatform, probe)}},
		{"a file of an image for wasi", "wasi/wasm", []node.Manifest{fileImage(t, wasiPlatform, probe)}},
		{"a file of an image for wasip1", "wasip1/wasm", []node.Manifest{fileImage(t, wasip1, probe)}},
		{"a layer of an image for wasi", "wasi/wasm", []node.Manifest{layered(wasiPlatform, moduleOf(probe))}},
		{"a layer of an image for wasip1", "wasip1/wasm", []node.Manifest{layered(wasip1, moduleOf(probe))}},
		{"a layer, in an index", "", []node.Manifest{in(linuxPlatform, layered(linuxPlatform, moduleOf(probe)))}},
		{"a layer, in an index of several with the same", "wasi/wasm", []node.Manifest{in(linuxPlatform, layered(linuxPlatform, moduleOf(probe))), in(wasiPlatform, layered(wasiPlatform, moduleOf(probe)))}},
		{"a layer beside files, in an index", "", []node.Manifest{in(wasiPlatform, layered(wasiPlatform, moduleOf(hello))), in(linuxPlatform, fileImage(t, linuxPlatform, probe))}},
		{"files beside a layer, in an index", "wasi/wasm", []node.Manifest{in(linuxPlatform, fileImage(t, linuxPlatform, hello)), in(wasiPlatform, layered(wasiPlatform, moduleOf(probe)))}},
	}
	for _, mediaType := range moduleLayers {
		m := layered(linuxPlatform, node.Layer{MediaType: mediaType, Data: probe})
		forms = append(forms, forms[0])
		f := &forms[len(forms)-1]
		f.name, f.manifests = "a layer of type "+mediaType, []node.Manifest{m}
	}
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			img := artifact(t, n, f.manifests...)
			args := []string{img.Name(), newID(t), "/app.wasm", "args", "write", "/made", "x", "cat", "/made", "exit", "7"}
			if f.platform != "" {
				args = append([]string{"--platform", f.platform}, args...)
			}
			before := traces(t, n)
			out, status := ctrRun(t, n, args...)
			if want := `args: ["/app.wasm" "args" "write" "/made" "x" "cat" "/made" "exit" "7"]` + "\nx"; strings.TrimSpace(out) != want || status != 7 {
				t.Errorf("exit status %d, printed %q, want %q", status, out, want)
			}
			leaves(t, n, before)
		})
	}
	t.Run("the entry point is the image's", func(t *testing.T) {
		out, status := ctrRun(t, n, artifact(t, n, layered(linuxPlatform, moduleOf(hello))).Name(), newID(t))
		if status != 0 || !strings.Contains(out, "hello") {
			t.Errorf("exit status %d, printed %q", status, out)
		}
	})
	t.Run("an exported function", func(t *testing.T) {
		img := artifact(t, n, layered(linuxPlatform, moduleOf(guest(t, "functions.wasm"))))
		if out, status := ctrRun(t, n, img.Name(), newID(t), "f#two"); status != 42 {
			t.Errorf("exit status %d: %s", status, out)
		}
		if out, _ := ctrRun(t, n, img.Name(), newID(t), "f#three"); !strings.Contains(out, `entry point f: exports no function "three"`) {
			t.Errorf("printed %q", out)
		}
	})
	t.Run("a layer of files is the rest of the root", func(t *testing.T) {
		m := fileImage(t, linuxPlatform, hello)
		m.Layers = append(m.Layers, moduleOf(probe))
		img := artifact(t, n, m)
		if out, status := ctrRun(t, n, img.Name(), newID(t), "app", "cat", "/etc/motd"); status != 0 || out != "a file of the image\n" {
			t.Errorf("exit status %d, printed %q", status, out)
		}
		if out, status := ctrRun(t, n, img.Name(), newID(t), "/app.wasm"); status != 0 || !strings.Contains(out, "hello") {
			t.Errorf("a file of that name: exit status %d, printed %q", status, out)
		}
	})
	t.Run("in a user namespace", func(t *testing.T) {
		img := artifact(t, n, layered(linuxPlatform, moduleOf(probe)))
		if out, status := ctrRun(t, n, "--uidmap=0:100000:65536", "--gidmap=0:100000:65536", img.Name(), newID(t), "app", "print", "x"); status != 0 || out != "x\n" {
			t.Errorf("exit status %d, printed %q", status, out)
		}
	})
	t.Run("with a root that is read-only", func(t *testing.T) {
		img := artifact(t, n, layered(linuxPlatform, moduleOf(probe)))
		if out, status := ctrRun(t, n, "--read-only", img.Name(), newID(t), "app", "cwd"); status != 0 || out != "cwd: /\n" {
			t.Errorf("exit status %d, printed %q", status, out)
		}
	})
}

// What containerd itself says of an image, and the way round.
func TestWhatOfImagesContainerdRefuses(t *testing.T) {
	n := useNode(t)
	hello := guest(t, "hello.wasm")
	t.Run("another platform than the host's, in an index", func(t *testing.T) {
		img := artifact(t, n, in(wasiPlatform, layered(wasiPlatform, moduleOf(hello))))
		if out, status := ctrRun(t, n, img.Name(), newID(t)); status == 0 || !strings.Contains(out, "no match for platform in manifest") {
			t.Errorf("exit status %d: %s", status, out)
		}
		if out, status := ctrRun(t, n, "--platform=wasi/wasm", img.Name(), newID(t)); status != 0 {
			t.Errorf("exit status %d: %s", status, out)
		}
	})
	t.Run("the configuration of the CNCF's artifact", func(t *testing.T) {
		img := artifact(t, n, cncf(moduleOf(hello)))
		if out, status := ctrRun(t, n, img.Name(), newID(t), "app"); status == 0 || !strings.Contains(out, "unknown image config media type "+wasmConfig) {
			t.Errorf("exit status %d: %s", status, out)
		}
		// By a client that does not ask for it: all there is to know is in the manifest.
		b := bare(t, n, img, "app")
		if got := b.live(t); got != 0 || !strings.Contains(b.stdout.String(), "hello") {
			t.Errorf("exit status %d, printed %q", got, b.stdout)
		}
	})
}

// bare makes a container of an image of which nothing but its layers counts.
func bare(t *testing.T, n *node.Node, img containerd.Image, argv ...string) *box {
	t.Helper()
	ctx := n.Context(t.Context())
	id := newID(t)
	c, err := n.Client.NewContainer(ctx, id, containerd.WithImage(img), containerd.WithNewSnapshot(id, img), containerd.WithRuntime(node.Runtime, nil),
		containerd.WithNewSpec(oci.WithDefaultPathEnv, args(argv...)))
	if err != nil {
		t.Fatal(err)
	}
	b := &box{Container: c, stdout: &buffer{}, stderr: &buffer{}, ctx: ctx, node: n}
	t.Cleanup(b.remove)
	return b
}

// makeImage makes an archive of a guest with the repository's own tool.
func makeImage(t *testing.T, form, name, module string, more ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	cmd := exec.Command(filepath.Join(bin(), "image"), append(append([]string{"-form", form, "-name", name, "-o", path}, more...), filepath.Join(bin(), "guests", module))...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("image: %v: %s", err, out)
	}
	return path
}

func TestImagesOfTheToolRun(t *testing.T) {
	n := useNode(t)
	for _, form := range []string{"scratch", "layers"} {
		t.Run(form, func(t *testing.T) {
			name := "example.com/" + strings.ToLower(newID(t)) + ":v1"
			path := makeImage(t, form, name, "probe.wasm")
			if out, err := n.Ctr(t.Context(), "image", "import", path).CombinedOutput(); err != nil {
				t.Fatalf("import: %v: %s", err, out)
			}
			if out, status := ctrRun(t, n, name, newID(t)); status != 0 || out != "" {
				t.Errorf("exit status %d, printed %q", status, out)
			}
			if out, status := ctrRun(t, n, name, newID(t), "/probe.wasm", "args"); status != 0 || out != "args: [\"/probe.wasm\" \"args\"]\n" {
				t.Errorf("exit status %d, printed %q", status, out)
			}
		})
	}
	t.Run("artifact", func(t *testing.T) {
		name := "example.com/" + strings.ToLower(newID(t)) + ":v1"
		f, err := os.Open(makeImage(t, "artifact", name, "probe.wasm"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ctx := n.Context(t.Context())
		if _, err := n.Client.Import(ctx, f); err != nil {
			t.Fatal(err)
		}
		img, err := n.Client.GetImage(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		b := bare(t, n, img, "app", "args")
		if got := b.live(t); got != 0 || b.stdout.String() != "args: [\"app\" \"args\"]\n" {
			t.Errorf("exit status %d, printed %q", got, b.stdout)
		}
	})
}

// Nothing is run that might be another program than was meant.
func TestBadImages(t *testing.T) {
	n := useNode(t)
	hello, probe := guest(t, "hello.wasm"), guest(t, "probe.wasm")
	digest := godigest.FromBytes(hello).String()
	change := func(m node.Manifest, f func(*ocispec.Manifest)) node.Manifest {
		m.Change = f
		return m
	}
	for _, c := range []struct {
		name      string
		manifests []node.Manifest
		want      []string
	}{
		{"two modules", []node.Manifest{layered(linuxPlatform, moduleOf(hello), moduleOf(probe))}, []string{"2 layers that are a module", digest}},
		{"two modules of different types", []node.Manifest{cncf(moduleOf(hello), node.Layer{MediaType: moduleLayers[2], Data: probe})}, []string{"2 layers that are a module"}},
		{"an artifact without a layer", []node.Manifest{cncf()}, []string{"no layer that is a module"}},
		{"layers of unknown types", []node.Manifest{cncf(node.Layer{MediaType: "application/x-thing", Data: hello})}, []string{"no layer that is a module", `"application/x-thing"`}},
		{"an unknown type with an ordinary configuration", []node.Manifest{layered(linuxPlatform, node.Layer{MediaType: "application/wasm+gzip", Data: hello})}, []string{"no layer that is a module", `"application/wasm+gzip"`}},
		{"a component", []node.Manifest{cncf(node.Layer{MediaType: moduleLayers[1], Data: []byte("\x00asm\x0d\x00\x01\x00")})}, []string{"component", "preview 2"}},
		{"text", []node.Manifest{cncf(moduleOf([]byte(";; an app\n(module)")))}, []string{"WebAssembly text", "wat2wasm"}},
		{"garbage", []node.Manifest{cncf(moduleOf([]byte("0123456789")))}, []string{"not a WebAssembly module"}},
		{"an empty layer", []node.Manifest{cncf(moduleOf(nil))}, []string{"empty"}},
		{"half a module", []node.Manifest{cncf(moduleOf(probe[:len(probe)/2]))}, []string{"not a valid WebAssembly module"}},
		{"no _start", []node.Manifest{cncf(moduleOf(guest(t, "nostart.wasm")))}, []string{"entry point app:", "_start"}},
		{"a Linux program for a layer", []node.Manifest{cncf(moduleOf(guest(t, "hello-static")))}, []string{"a Linux program"}},
		{"a layer of another size", []node.Manifest{change(cncf(moduleOf(hello)), func(m *ocispec.Manifest) { m.Layers[0].Size++ })}, []string{digest, fmt.Sprintf("%d bytes, the manifest says %d", len(hello), len(hello)+1)}},
		{"a layer of no size", []node.Manifest{change(cncf(moduleOf(hello)), func(m *ocispec.Manifest) { m.Layers[0].Size = -1 })}, []string{digest, "-1 bytes"}},
		{"a layer that is too large", []node.Manifest{change(cncf(moduleOf(hello)), func(m *ocispec.Manifest) { m.Layers[0].Size = 1<<30 + 1 })}, []string{digest, "are the most"}},
		{"a layer that is not there", []node.Manifest{change(cncf(moduleOf(hello)), func(m *ocispec.Manifest) { m.Layers[0].Digest = godigest.FromString("x") })}, []string{godigest.FromString("x").String(), "not found"}},
		{"a digest of another kind", []node.Manifest{change(cncf(moduleOf(hello)), func(m *ocispec.Manifest) { m.Layers[0].Digest = godigest.SHA512.FromBytes(hello) })}, []string{"not by SHA-256"}},
		{"a digest that is none", []node.Manifest{change(cncf(moduleOf(hello)), func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../x" })}, []string{"sha256:../../x"}},
		{"other modules for other platforms", []node.Manifest{in(linuxPlatform, layered(linuxPlatform, moduleOf(hello))), in(wasiPlatform, layered(wasiPlatform, moduleOf(probe)))}, []string{"linux/" + runtime.GOARCH, "wasi/wasm", "by its digest"}},
		{"no such file of an ordinary image", []node.Manifest{fileImage(t, linuxPlatform, hello)}, []string{"entry point", "not found in PATH"}},
		{"no such file where another platform has a layer", []node.Manifest{in(linuxPlatform, fileImage(t, linuxPlatform, hello)), in(wasiPlatform, layered(wasiPlatform, moduleOf(probe)))}, []string{"entry point", "not found in PATH"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := artifact(t, n, c.manifests...)
			if strings.HasPrefix(c.name, "no such file") {
				if err := img.Unpack(n.Context(t.Context()), ""); err != nil {
					t.Fatal(err)
				}
			}
			b := bare(t, n, img, "app")
			before := traces(t, n)
			rec := record(t, n)
			err := b.create()
			wantError(t, err, nil, c.want...)
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			b.Delete(b.ctx, containerd.WithSnapshotCleanup)
			leaves(t, n, before)
			if got := names(rec.of(b.ID(), 0)); len(got) != 0 {
				t.Errorf("events %v, want none", got)
			}
		})
	}
}

// A name may be another image's by the time its container is run.
func TestAnImageWhoseNameWasMoved(t *testing.T) {
	n := useNode(t)
	ctx := n.Context(t.Context())
	hello, probe := guest(t, "hello.wasm"), guest(t, "probe.wasm")
	move := func(t *testing.T, img containerd.Image, m node.Manifest) {
		t.Helper()
		if _, err := n.Artifact(ctx, img.Name(), m); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("since the container was created", func(t *testing.T) {
		img := artifact(t, n, cncf(moduleOf(hello)))
		b := bare(t, n, img, "app")
		move(t, img, cncf(moduleOf(probe)))
		wantError(t, b.create(), errdefs.ErrFailedPrecondition, img.Name(), "after the container was created", "anew")
		if b := bare(t, n, img, "app", "print", "x"); b.live(t) != 0 || b.stdout.String() != "x\n" {
			t.Errorf("another container printed %q", b.stdout)
		}
	})
	t.Run("and is gone", func(t *testing.T) {
		img := artifact(t, n, cncf(moduleOf(hello)))
		b := bare(t, n, img, "app")
		if err := n.Client.ImageService().Delete(ctx, img.Name()); err != nil {
			t.Fatal(err)
		}
		wantError(t, b.create(), errdefs.ErrFailedPrecondition, img.Name(), "not found")
	})
	t.Run("and has a digest in it", func(t *testing.T) {
		img := artifact(t, n, cncf(moduleOf(hello)))
		img, err := n.Artifact(ctx, "example.com/by-digest@"+img.Target().Digest.String(), cncf(moduleOf(hello)))
		if err != nil {
			t.Fatal(err)
		}
		b := bare(t, n, img, "app")
		move(t, img, cncf(moduleOf(hello))) // to the same: that is all right
		if got := b.live(t); got != 0 {
			t.Errorf("exit status %d", got)
		}
		b = bare(t, n, img, "app")
		move(t, img, cncf(moduleOf(probe)))
		wantError(t, b.create(), errdefs.ErrFailedPrecondition, img.Name(), "anew")
	})
	t.Run("from an image with files", func(t *testing.T) {
		m := fileImage(t, linuxPlatform, hello)
		img := artifact(t, n, m)
		if err := img.Unpack(ctx, ""); err != nil {
			t.Fatal(err)
		}
		old, err := n.Client.ImageService().Get(ctx, img.Name())
		if err != nil {
			t.Fatal(err)
		}
		move(t, img, cncf(moduleOf(probe)))
		// What a client may do that had looked the name up a moment before.
		b := bare(t, n, containerd.NewImage(n.Client, old), "app")
		wantError(t, b.create(), errdefs.ErrFailedPrecondition, img.Name(), "not what the container was created from")
	})
}

// An exec runs the module again if it calls it what the container does, and else a
// file, of which there may be none.
func TestExecsInAContainerOfALayer(t *testing.T) {
	n := useNode(t)
	img := artifact(t, n, layered(linuxPlatform, moduleOf(guest(t, "probe.wasm"))))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.wasm"), guest(t, "hello.wasm"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := container(t, n, img, args("/app.wasm", "idle"), oci.WithMounts([]specs.Mount{{Type: "bind", Source: dir, Destination: "/v", Options: []string{"rbind", "ro"}}}))
	b.mustCreate(t)
	b.mustStart(t)
	// Whatever becomes of the image: it is a module that the container has.
	if err := n.Client.ImageService().Delete(b.ctx, img.Name()); err != nil {
		t.Fatal(err)
	}
	run := func(argv ...string) (string, error) {
		e, err := b.exec(t, newID(t), nil, argv...)
		if err == nil {
			err = e.Start(b.ctx)
		}
		if err != nil {
			return "", err
		}
		e.finish(t, b.ctx)
		return e.stdout.String(), nil
	}
	if got, err := run("/app.wasm", "args"); err != nil || got != "args: [\"/app.wasm\" \"args\"]\n" {
		t.Errorf("printed %q, %v", got, err)
	}
	if got, err := run("/v/hello.wasm"); err != nil || !strings.Contains(got, "hello") {
		t.Errorf("a file: printed %q, %v", got, err)
	}
	for _, name := range []string{"sh", "/bin/sh", "app", "/app.wasm/x"} {
		_, err := run(name)
		wantError(t, err, errdefs.ErrInvalidArgument, name)
	}
}

func TestImagesInAPod(t *testing.T) {
	probe, hello := guest(t, "probe.wasm"), guest(t, "hello.wasm")
	p := runPod(t)
	podArtifact := func(t *testing.T, manifests ...node.Manifest) string {
		img := artifact(t, p.n, manifests...)
		if manifests[0].Layers[0].MediaType == ocispec.MediaTypeImageLayer {
			if err := img.Unpack(p.n.Context(t.Context()), ""); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "CRI knows "+img.Name(), func() bool { return criKnows(t, p.n, img.Name()) })
		return img.Name()
	}
	t.Run("every form", func(t *testing.T) {
		for _, f := range []struct {
			name      string
			manifests []node.Manifest
			command   bool // has to be given
		}{
			{"the artifact of the CNCF", []node.Manifest{cncf(moduleOf(probe))}, true},
			{"a layer", []node.Manifest{layered(linuxPlatform, moduleOf(probe))}, false},
			{"a layer for wasi", []node.Manifest{layered(wasiPlatform, moduleOf(probe))}, false},
			{"a layer, in an index", []node.Manifest{in(wasiPlatform, layered(wasiPlatform, moduleOf(hello))), in(linuxPlatform, layered(linuxPlatform, moduleOf(probe)))}, false},
			{"a file for wasip1", []node.Manifest{fileImage(t, wasip1, probe)}, false},
			{"a file for wasi", []node.Manifest{fileImage(t, wasiPlatform, probe)}, false},
		} {
			t.Run(f.name, func(t *testing.T) {
				p := p.in(t)
				name := podArtifact(t, f.manifests...)
				var opts []option
				if f.command {
					opts = append(opts, command("/app.wasm"))
				}
				if got := p.finished(name, []string{"args"}, opts...); got != "args: [\"/app.wasm\" \"args\"]\n" {
					t.Errorf("printed %q", got)
				}
			})
		}
	})
	t.Run("an exec", func(t *testing.T) {
		p := p.in(t)
		id := p.run(podArtifact(t, cncf(moduleOf(probe))), []string{"print", "up", "idle"}, command("app"))
		p.running(id, "up\n")
		if resp, err := p.exec(id, "app", "print", "x"); err != nil || string(resp.Stdout) != "x\n" || resp.ExitCode != 0 {
			t.Errorf("%v, %v", resp, err)
		}
		_, err := p.exec(id, "sh", "-c", "true")
		wantError(t, err, nil, `"sh"`)
		p.stop(id, 0)
	})
	t.Run("a name that was moved", func(t *testing.T) {
		p := p.in(t)
		name := podArtifact(t, cncf(moduleOf(hello)))
		id := p.create(name, nil, command("app"))
		if _, err := p.n.Artifact(p.ctx, name, cncf(moduleOf(probe))); err != nil {
			t.Fatal(err)
		}
		collectGarbage(t, p.n)
		// CRI has on record what it was.
		if err := p.start(id); err != nil {
			t.Fatal(err)
		}
		p.exited(id)
		if got := p.output(id, "stdout"); !strings.Contains(got, "hello") {
			t.Errorf("printed %q", got)
		}
	})
	t.Run("a bad one", func(t *testing.T) {
		p := p.in(t)
		id := p.create(podArtifact(t, cncf(moduleOf([]byte("(module)")))), nil, command("app"))
		wantError(t, p.start(id), nil, "entry point app", "wat2wasm")
		if s := p.status(id); s.Reason != "StartError" || !strings.Contains(s.Message, "wat2wasm") {
			t.Errorf("status %v", s)
		}
		p.removeContainer(id)
	})
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		t.Error(err) // not of the test's own goroutine
	}
}

// collectGarbage has containerd remove what nothing refers to.
func collectGarbage(t *testing.T, n *node.Node) {
	t.Helper()
	ctx := n.Context(t.Context())
	lease, err := n.Client.LeasesService().Create(ctx, leases.WithRandomID())
	if err == nil {
		err = n.Client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func criKnows(t *testing.T, n *node.Node, name string) bool {
	t.Helper()
	resp, err := n.Images().ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	return err == nil && resp.Image != nil
}

// registry serves the images of an unpacked archive, each of which has any name.
func registry(t *testing.T, archive string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var index ocispec.Index
	readJSON(t, filepath.Join(dir, "index.json"), &index)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		digest := index.Manifests[0].Digest
		if i := strings.LastIndex(r.URL.Path, "sha256:"); i >= 0 {
			digest = godigest.Digest(r.URL.Path[i:])
		}
		path := filepath.Join(dir, "blobs", "sha256", digest.Encoded())
		if _, err := os.Stat(path); err != nil {
			http.NotFound(w, r)
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			var m struct{ MediaType string }
			readJSON(t, path, &m)
			w.Header().Set("Content-Type", m.MediaType)
			w.Header().Set("Docker-Content-Digest", digest.String())
		}
		http.ServeFile(w, r, path)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// The images of the tool, pulled by CRI as the kubelet has it.
func TestImagesThatAPodPulls(t *testing.T) {
	p := runPod(t)
	for _, form := range []string{"scratch", "layers", "artifact"} {
		t.Run(form, func(t *testing.T) {
			p := p.in(t)
			name := registry(t, makeImage(t, form, "example.com/x:v1", "probe.wasm")) + "/" + form + ":v1"
			resp, err := p.n.Images().PullImage(p.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
			if err != nil {
				t.Fatal(err)
			}
			// By its id, as the kubelet has it.
			if got := p.finished(resp.ImageRef, []string{"args"}, command("/probe.wasm")); got != "args: [\"/probe.wasm\" \"args\"]\n" {
				t.Errorf("printed %q", got)
			}
		})
	}
	// What containerd's way to pull makes of files for another system than its host's,
	// unless it is told use_local_image_pull.
	t.Run("files for wasi", func(t *testing.T) {
		p := p.in(t)
		name := registry(t, makeImage(t, "scratch", "example.com/x:v1", "hello.wasm", "-platform", "wasi/wasm")) + "/wasi:v1"
		if _, err := p.n.Images().PullImage(p.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
			t.Fatal(err)
		}
		config := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "x"}, Image: &runtimeapi.ImageSpec{Image: name}, Linux: &runtimeapi.LinuxContainerConfig{}}
		_, err := p.n.Pods().CreateContainer(p.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		wantError(t, err, nil, "parent snapshot", "does not exist")
	})
}

// brokenContent is a node with a content store of the test's own, and an artifact in
// it that has not been run yet, whose layer is broken.
func brokenContent(t *testing.T, fault func(p []byte, off int64, n int) (int, error)) (*node.Node, *node.ContentStore, *box) {
	t.Helper()
	need(t)
	dir, err := os.MkdirTemp("", "content") // short: its address has to fit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	store, err := node.ServeContent(filepath.Join(dir, "content"), filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Stop)
	opts := options()
	opts.ContentStore = filepath.Join(dir, "sock")
	n := newNode(t, opts)
	probe := guest(t, "probe.wasm")
	img := artifact(t, n, cncf(moduleOf(probe)))
	store.Break(godigest.FromBytes(probe), fault)
	return n, store, bare(t, n, img, "app", "print", "x")
}

// What the content store has is run only if it is the layer.
func TestALayerThatTheContentStoreHasWrong(t *testing.T) {
	flip := true
	n, _, b := brokenContent(t, func(p []byte, off int64, n int) (int, error) {
		if flip && off == 0 {
			p[n/2] ^= 1
		}
		return n, nil
	})
	before := traces(t, n)
	wantError(t, b.create(), errdefs.ErrInvalidArgument, "entry point app", "does not match the digest")
	leaves(t, n, before)
	flip = false
	if got := b.live(t); got != 0 || b.stdout.String() != "x\n" {
		t.Errorf("once it is right: exit status %d, printed %q", got, b.stdout)
	}
	// It is compiled by now, and its bytes are not asked for again.
	flip = true
	b = bare(t, n, mustImage(t, n, b), "app", "print", "y")
	if got := b.live(t); got != 0 || b.stdout.String() != "y\n" {
		t.Errorf("once it is compiled: exit status %d, printed %q", got, b.stdout)
	}
}

func mustImage(t *testing.T, n *node.Node, b *box) containerd.Image {
	t.Helper()
	info, err := b.Info(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	img, err := n.Client.GetImage(b.ctx, info.Image)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// The content store goes away while a layer is read of it.
func TestAContentStoreThatGoesAway(t *testing.T) {
	gate := func() (func([]byte, int64, int) (int, error), chan struct{}, chan struct{}) {
		asked, release := make(chan struct{}, 100), make(chan struct{})
		return func(_ []byte, _ int64, n int) (int, error) {
			asked <- struct{}{}
			<-release
			return n, nil
		}, asked, release
	}
	creating := func(b *box) chan error {
		done := make(chan error, 1)
		go func() { done <- b.create() }()
		return done
	}
	t.Run("the plugin dies", func(t *testing.T) {
		fault, asked, release := gate()
		n, store, b := brokenContent(t, fault)
		before := traces(t, n)
		done := creating(b)
		<-asked
		stopped := make(chan struct{})
		go func() { defer close(stopped); store.Stop() }()
		wantError(t, <-done, nil, "entry point app", "layer sha256:")
		close(release)
		<-stopped
		leaves(t, n, before)
	})
	t.Run("containerd is killed", func(t *testing.T) {
		fault, asked, release := gate()
		n, _, b := brokenContent(t, fault)
		before := traces(t, n)
		done := creating(b)
		<-asked
		if err := n.Halt(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("created by a containerd that is dead")
		}
		close(release)
		if err := n.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		leaves(t, n, before)
	})
	t.Run("containerd is stopped, and goes on", func(t *testing.T) {
		fault, asked, release := gate()
		n, _, b := brokenContent(t, fault)
		done := creating(b)
		<-asked
		if err := syscall.Kill(n.Pid(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		close(release)
		select {
		case err := <-done:
			t.Errorf("created while containerd stands still: %v", err)
		case <-time.After(300 * time.Millisecond):
		}
		if err := syscall.Kill(n.Pid(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		b.mustStart(t)
		if got := b.exit(t); got != 0 || b.stdout.String() != "x\n" {
			t.Errorf("exit status %d, printed %q", got, b.stdout)
		}
	})
	t.Run("the client gives up", func(t *testing.T) {
		fault, asked, release := gate()
		n, _, b := brokenContent(t, fault)
		before := traces(t, n)
		ctx, cancel := context.WithCancel(b.ctx)
		done := make(chan error, 1)
		go func() {
			task, err := b.NewTask(ctx, cio.NullIO)
			b.task = task
			done <- err
		}()
		<-asked
		cancel()
		if err := <-done; err == nil {
			t.Error("created, though nobody waits for it")
		}
		close(release)
		leaves(t, n, before)
	})
	t.Run("the image is removed", func(t *testing.T) {
		fault, asked, release := gate()
		n, _, b := brokenContent(t, fault)
		before := traces(t, n)
		done := creating(b)
		<-asked
		// With its layers: the collector is waited for. A plugin has it open for each
		// piece anew, other than containerd's own store.
		if err := n.Client.ImageService().Delete(b.ctx, mustImage(t, n, b).Name(), images.SynchronousDelete()); err != nil {
			t.Fatal(err)
		}
		close(release)
		wantError(t, <-done, errdefs.ErrFailedPrecondition, "entry point app", "layer sha256:", "not found")
		leaves(t, n, before)
	})
}

// A layer shows in the trace of its container, which containerd's own part of it is in.
func TestTheTraceOfALayer(t *testing.T) {
	n := useNode(t)
	data := another(guest(t, "hello.wasm"), newID(t))
	img := artifact(t, n, cncf(moduleOf(data)))
	for _, first := range []bool{true, false} {
		b := bare(t, n, img, "app")
		if got := b.live(t); got != 0 {
			t.Fatalf("exit status %d: %s", got, b.stderr)
		}
		names := []string{"module.resolve", "image.resolve", "module.compile", "module.load", "task.delete"}
		if first {
			names = append(names, "layer.read", "module.translate")
		}
		got := trace(t, spans, b.ID(), names...)
		checkTree(t, got, b.ID())
		if _, read := got["layer.read"]; read != first {
			t.Errorf("layer.read: %v, want %v", read, first)
		}
		if a := got["module.resolve"].Attrs; a["wasm.module.source"] != "layer" || a["wasm.module.path"] != "" || a["wasm.module.digest"] != godigest.FromBytes(data).String() || a["wasm.module.size"] != strconv.Itoa(len(data)) {
			t.Errorf("module.resolve: %v", a)
		}
		eventually(t, "the trace has what containerd was asked for", func() bool {
			return slices.ContainsFunc(spans.Trace(got["task.create"].TraceID), func(s collector.Span) bool {
				return strings.HasPrefix(s.Name, "containerd.services.content.v1.Content/")
			})
		})
	}
}
