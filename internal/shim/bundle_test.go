package shim

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func writeConfig(t *testing.T, content string) (bundle string) {
	t.Helper()
	bundle = t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, configFile), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return bundle
}

const (
	goodProcess = `"process":{"args":["/main.wasm"],"cwd":"/"}`
	goodRoot    = `"root":{"path":"rootfs"}`
	goodLinux   = `"linux":{"namespaces":[{"type":"uts"}]}`
)

func TestABundleThatCannotRunIsAnInvalidArgument(t *testing.T) {
	for name, config := range map[string]string{
		"an empty file":               "",
		"no JSON":                     "{",
		"another type":                "[]",
		"null":                        "null",
		"no process":                  `{` + goodRoot + `,` + goodLinux + `}`,
		"no arguments":                `{"process":{"cwd":"/"},` + goodRoot + `,` + goodLinux + `}`,
		"a relative cwd":              `{"process":{"args":["a"],"cwd":"tmp"},` + goodRoot + `,` + goodLinux + `}`,
		"no cwd":                      `{"process":{"args":["a"]},` + goodRoot + `,` + goodLinux + `}`,
		"no root":                     `{` + goodProcess + `,` + goodLinux + `}`,
		"no root path":                `{` + goodProcess + `,"root":{},` + goodLinux + `}`,
		"no linux":                    `{` + goodProcess + `,` + goodRoot + `}`,
		"a relative mount":            `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"mounts":[{"destination":"tmp","type":"tmpfs"}]}`,
		"a user namespace":            `{` + goodProcess + `,` + goodRoot + `,"linux":{"namespaces":[{"type":"user"}]}}`,
		"unmapped user":               `{"process":{"args":["a"],"cwd":"/","user":{"uid":5}},` + goodRoot + `,"linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"hostID":9,"size":1}],"gidMappings":[{"hostID":9,"size":1}]}}`,
		"mappings alone":              `{` + goodProcess + `,` + goodRoot + `,"linux":{"uidMappings":[{"hostID":9,"size":1}]}}`,
		"no such namespace":           `{` + goodProcess + `,` + goodRoot + `,"linux":{"namespaces":[{"type":"ipc","path":"/no/such"}]}}`,
		"a startContainer hook":       `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"hooks":{"startContainer":[{"path":"/bin/true"}]}}`,
		"a hook of a relative path":   `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"hooks":{"prestart":[{"path":"/bin/true"},{"path":"true"}]}}`,
		"a hook without time":         `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"hooks":{"poststop":[{"path":"/bin/true","timeout":0}]}}`,
		"the host's name":             `{` + goodProcess + `,` + goodRoot + `,"linux":{},"hostname":"mine"}`,
		"the host's domain":           `{` + goodProcess + `,` + goodRoot + `,"linux":{},"domainname":"mine"}`,
		"arguments of the wrong type": `{"process":{"args":"a","cwd":"/"},` + goodRoot + `,` + goodLinux + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			b, err := loadBundle(writeConfig(t, config))
			if err == nil {
				_, err = b.walls()
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %+v, %v, want %v", b, err, errdefs.ErrInvalidArgument)
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		if _, err := loadBundle(t.TempDir()); !errors.Is(err, errdefs.ErrInvalidArgument) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v, want %v", err, os.ErrNotExist)
		}
	})
	t.Run("a directory", func(t *testing.T) {
		bundle := t.TempDir()
		if err := os.Mkdir(filepath.Join(bundle, configFile), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := loadBundle(bundle); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("got %v, want %v", err, errdefs.ErrInvalidArgument)
		}
	})
}

func TestABundleSaysWhatTheProcessIsToGet(t *testing.T) {
	const caps = `"capabilities":{"effective":["CAP_FOWNER"],"ambient":["CAP_DAC_OVERRIDE"]}`
	for _, tt := range []struct {
		name, config string
		rootfs       string // in the bundle, unless absolute
		hostname     string
		capabilities []string
		umask        uint32
	}{
		{"the least", `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `}`, "rootfs", "", nil, 0o022},
		{"fields that nobody heeds", `{"ociVersion":"1.2.0","solaris":1,` + goodProcess + `,` + goodRoot + `,` + goodLinux + `}`, "rootfs", "", nil, 0o022},
		{"an absolute root", `{` + goodProcess + `,"root":{"path":"/srv/root"},` + goodLinux + `}`, "/srv/root", "", nil, 0o022},
		{"a host name of its own", `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"hostname":"mine"}`, "rootfs", "mine", nil, 0o022},
		{"root has the effective set", `{"process":{"args":["a"],"cwd":"/",` + caps + `},` + goodRoot + `,` + goodLinux + `}`,
			"rootfs", "", []string{"CAP_FOWNER"}, 0o022},
		{"others have the ambient set", `{"process":{"args":["a"],"cwd":"/","user":{"uid":1,"umask":7},` + caps + `},` + goodRoot + `,` + goodLinux + `}`,
			"rootfs", "", []string{"CAP_DAC_OVERRIDE"}, 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := writeConfig(t, tt.config)
			b, err := loadBundle(path)
			if err != nil {
				t.Fatal(err)
			}
			w, err := b.walls()
			if err != nil {
				t.Fatal(err)
			}
			want := tt.rootfs
			if !filepath.IsAbs(want) {
				want = filepath.Join(path, want)
			}
			if w.Rootfs != want || w.Base != path || w.Hostname != tt.hostname {
				t.Errorf("got %+v, want root %s in %s, host %q", w, want, path, tt.hostname)
			}
			if !slices.Equal(w.Capabilities, tt.capabilities) {
				t.Errorf("got %v, want %v", w.Capabilities, tt.capabilities)
			}
			if got := b.instanceConfig(b.spec.Process).Umask; got != tt.umask {
				t.Errorf("got umask %#o, want %#o", got, tt.umask)
			}
		})
	}
}

func TestTheLastPATHIsSearched(t *testing.T) {
	for _, tt := range []struct {
		env  []string
		want string
	}{
		{nil, ""},
		{[]string{"HOME=/", "XPATH=/x", "PATHS=/y", "PATH"}, ""},
		{[]string{"PATH=/bin"}, "/bin"},
		{[]string{"PATH=/bin", "A=B", "PATH=/usr/bin:/x=y"}, "/usr/bin:/x=y"},
		{[]string{"PATH=/bin", "PATH="}, ""},
	} {
		if got := searchPath(&specs.Process{Env: tt.env}); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestStateIsKeptBesideTheContainerdThatStartedTheShim(t *testing.T) {
	const fallback = "/var/lib/containerd-shim-wazero-v1"
	for _, tt := range []struct{ work, want string }{
		{"", fallback},
		{"relative/work", fallback},
		{"/var/lib/containerd/io.containerd.runtime.v2.task/default/c1", "/var/lib/containerd/io.containerd.wazero.v1"},
	} {
		bundle := t.TempDir()
		if tt.work != "" {
			if err := os.Symlink(tt.work, filepath.Join(bundle, "work")); err != nil {
				t.Fatal(err)
			}
		}
		if got := stateDir(bundle); got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.work, got, tt.want)
		}
	}
}
