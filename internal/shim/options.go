package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/regular"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/otlp"
)

const (
	// hostConfig is the configuration of the shims of a host, see
	// docs/configuration.md; hostConfigEnv names another file.
	hostConfig    = "/etc/containerd-shim-wazero/config.toml"
	hostConfigEnv = "CONTAINERD_SHIM_WAZERO_CONFIG"

	// maxOptions bounds a file of options, bytes.
	maxOptions = 1 << 20
)

// readOptions are the options of a container: those of the host, overridden by
// what its Create request carries, which may be nothing, runc's options, or the
// same in TOML. Unknown names the keys that are no options.
//
// What is wrong with the request is [errdefs.ErrInvalidArgument], with the host's
// file [errdefs.ErrFailedPrecondition].
func readOptions(request *anypb.Any) (o *options.Options, unknown []string, err error) {
	h, err := readHostFile()
	if err != nil {
		return nil, nil, err
	}
	more, err := override(h.options, request)
	if err != nil {
		return nil, nil, err
	}
	return h.options, append(h.unknown, more...), nil
}

// A hostFile is the configuration of the host.
type hostFile struct {
	path      string
	options   *options.Options
	telemetry any // a table, if all is well
	compile   compileTable
	cache     cacheTable
	unknown   []string
}

// hostConfigPath is where the configuration of the host is, or would be.
func hostConfigPath() string {
	if path := os.Getenv(hostConfigEnv); path != "" {
		return path
	}
	return hostConfig
}

// readHostFile reads the configuration of the host; there need not be any.
func readHostFile() (h hostFile, err error) {
	h = hostFile{path: hostConfigPath(), options: &options.Options{}}
	named := os.Getenv(hostConfigEnv) != ""
	data, err := regular.ReadFile(h.path, maxOptions)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return h, nil
	}
	if err == nil {
		err = h.decode(data)
	}
	if err != nil {
		return hostFile{}, fmt.Errorf("configuration of the host: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return h, nil
}

func (h *hostFile) decode(data []byte) (err error) {
	content := struct {
		*options.Options
		Telemetry any          `toml:"telemetry"` // no type: nothing there is an error
		Compile   compileTable `toml:"compile"`
		Cache     cacheTable   `toml:"cache"`
	}{Options: h.options}
	if h.unknown, err = decode(&content, h.path, data); err != nil {
		return err
	}
	h.telemetry, h.compile, h.cache = content.Telemetry, content.Compile, content.Cache
	for _, check := range []func() error{h.compile.check, h.cache.check} {
		if err := check(); err != nil {
			return fmt.Errorf("%s: %w", h.path, err)
		}
	}
	return nil
}

// variables are those that the file sets of telemetry. Whatever may be wrong with
// them is no reason not to run a container.
func (h hostFile) variables() (v otlp.Variables, unknown []string, err error) {
	if v, unknown, err = otlp.NewVariables(h.telemetry); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", h.path, err)
	}
	return v, unknown, nil
}

// override sets what a request says. runc's options cannot say that something is
// off, TOML can.
func override(o *options.Options, request *anypb.Any) (unknown []string, err error) {
	if request.GetTypeUrl() == "" && len(request.GetValue()) == 0 {
		return nil, nil
	}
	v, err := typeurl.UnmarshalAny(request)
	if err == nil {
		switch v := v.(type) {
		case *options.Options:
			proto.Merge(o, v)
			return nil, nil
		case *runtimeoptions.Options:
			if unknown, err = overrideTOML(o, v); err == nil {
				return unknown, nil
			}
		default:
			err = errors.New("not one that this runtime knows")
		}
	}
	return nil, fmt.Errorf("options of type %q: %w: %w", request.TypeUrl, err, errdefs.ErrInvalidArgument)
}

func overrideTOML(o *options.Options, r *runtimeoptions.Options) (unknown []string, err error) {
	if r.ConfigPath == "" {
		return decode(o, "TOML", r.ConfigBody)
	}
	if !filepath.IsAbs(r.ConfigPath) {
		return nil, fmt.Errorf("%s: not an absolute path", r.ConfigPath)
	}
	data, err := regular.ReadFile(r.ConfigPath, maxOptions)
	if err != nil {
		return nil, err
	}
	return decode(o, r.ConfigPath, data)
}

// decode sets what a TOML text has of v, and names the keys that v does not have.
// Its name and line are in every error.
func decode(v any, name string, data []byte) (unknown []string, err error) {
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(v)
	var strict *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &strict): // after everything else was decoded
		for _, e := range strict.Errors {
			// The name containerd itself has for the type of what it hands on.
			if key := strings.Join(e.Key(), "."); key != "TypeUrl" {
				line, _ := e.Position()
				unknown = append(unknown, fmt.Sprintf("%s, line %d: %s", name, line, key))
			}
		}
	case errors.As(err, &bad):
		line, _ := bad.Position()
		return nil, fmt.Errorf("%s, line %d: %w", name, line, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return unknown, nil
}
