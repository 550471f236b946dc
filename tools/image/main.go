// Command image makes an OCI image of a WebAssembly module: an OCI archive, which
// ctr, nerdctl, podman, skopeo and oras read. The same input makes the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// forms are what an image may look like, see docs/images.md.
var forms = map[string]form{"scratch": scratch, "layers": layers, "artifact": artifact}

const usage = `usage: image [OPTION...] MODULE.wasm

Makes an OCI archive with an image of a WebAssembly module.

`

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run is the command with the given arguments; it says to out what it has made.
func run(args []string, out io.Writer) error {
	var o options
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprint(out, usage)
		f.PrintDefaults()
	}
	kind := f.String("form", "scratch", "what it looks like: `scratch`, a root file system with the module for its only file; layers, the module is a layer;\nor artifact, the CNCF's OCI artifact for wasm")
	output := f.String("o", "", "the archive to write, a `file`; the module's with .tar for .wasm by default")
	tag := f.String("name", "", "the `name` of the image; example.com/ and the module's file name without .wasm by default")
	platforms := f.String("platform", "linux/amd64,linux/arm64", "the platforms that it is for, a `list`: an image has a manifest for each; an artifact has none")
	mediaType := f.String("layer-type", moduleLayer, "the `media type` of the layer, where the module is one")
	args, o.args = split(args)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if f.NArg() != 1 {
		return fmt.Errorf("%d modules given, want one (image -h lists the options)", f.NArg())
	}
	path := f.Arg(0)
	base := strings.TrimSuffix(filepath.Base(path), ".wasm")
	if *output == "" {
		*output = strings.TrimSuffix(path, ".wasm") + ".tar"
	}
	if *tag == "" {
		*tag = "example.com/" + strings.ToLower(base) + ":latest"
	}
	make := forms[*kind]
	if make == nil {
		return fmt.Errorf("-form %s: there are scratch, layers and artifact", *kind)
	}
	ref, err := name.NewTag(*tag)
	if err != nil {
		return fmt.Errorf("-name: %w", err)
	}
	for _, p := range strings.Split(*platforms, ",") {
		platform, err := v1.ParsePlatform(p)
		if err != nil || platform.OS == "" || platform.Architecture == "" {
			return fmt.Errorf("-platform %q: not a list of OS/ARCHITECTURE", *platforms)
		}
		o.platforms = append(o.platforms, *platform)
	}
	o.file, o.mediaType = base+".wasm", *mediaType
	if o.module, err = read(path); err != nil {
		return err
	}
	index, err := make(o)
	if err != nil {
		return err
	}
	if err := archive(*output, index, ref); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %s\n", *output, ref)
	return nil
}

// split takes the arguments of the module, which come after "--", off those of the command.
func split(all []string) (own, module []string) {
	for i, a := range all {
		if a == "--" {
			return all[:i], all[i+1:]
		}
	}
	return all, nil
}

// read reads a module, which has to be one that can be run.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	if info.Size() > module.MaxSize {
		return nil, fmt.Errorf("%s: it has %d bytes: %d are the most", path, info.Size(), int64(module.MaxSize))
	}
	if err := module.Check(f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return io.ReadAll(f)
}
