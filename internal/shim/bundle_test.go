package shim

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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
		"an empty file":                "",
		"no JSON":                      "{",
		"another type":                 "[]",
		"null":                         "null",
		"no process":                   `{` + goodRoot + `,` + goodLinux + `}`,
		"no arguments":                 `{"process":{"cwd":"/"},` + goodRoot + `,` + goodLinux + `}`,
		"a relative cwd":               `{"process":{"args":["a"],"cwd":"tmp"},` + goodRoot + `,` + goodLinux + `}`,
		"no cwd":                       `{"process":{"args":["a"]},` + goodRoot + `,` + goodLinux + `}`,
		"no root":                      `{` + goodProcess + `,` + goodLinux + `}`,
		"no root path":                 `{` + goodProcess + `,"root":{},` + goodLinux + `}`,
		"no linux":                     `{` + goodProcess + `,` + goodRoot + `}`,
		"a relative mount":             `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"mounts":[{"destination":"tmp","type":"tmpfs"}]}`,
		"a user namespace":             `{` + goodProcess + `,` + goodRoot + `,"linux":{"namespaces":[{"type":"user"}]}}`,
		"unmapped user":                `{"process":{"args":["a"],"cwd":"/","user":{"uid":5}},` + goodRoot + `,"linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"hostID":9,"size":1}],"gidMappings":[{"hostID":9,"size":1}]}}`,
		"more mappings than there are": `{` + goodProcess + `,` + goodRoot + `,"linux":{"namespaces":[{"type":"user"}],"uidMappings":[` + strings.Repeat(`{"size":1},`, 340) + `{"size":1}],"gidMappings":[{"size":1}]}}`,
		"more groups than there are":   `{"process":{"args":["a"],"cwd":"/","user":{"additionalGids":[` + strings.Repeat(`1,`, 1<<16) + `1]}},` + goodRoot + `,` + goodLinux + `}`,
		"mappings alone":               `{` + goodProcess + `,` + goodRoot + `,"linux":{"uidMappings":[{"hostID":9,"size":1}]}}`,
		"no such namespace":            `{` + goodProcess + `,` + goodRoot + `,"linux":{"namespaces":[{"type":"ipc","path":"/no/such"}]}}`,
		"a startContainer hook":        `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"hooks":{"startContainer":[{"path":"/bin/true"}]}}`,
		"a hook of a relative path":    `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"hooks":{"prestart":[{"path":"/bin/true"},{"path":"true"}]}}`,
		"a hook without time":          `{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,"hooks":{"poststop":[{"path":"/bin/true","timeout":0}]}}`,
		"the host's name":              `{` + goodProcess + `,` + goodRoot + `,"linux":{},"hostname":"mine"}`,
		"the host's domain":            `{` + goodProcess + `,` + goodRoot + `,"linux":{},"domainname":"mine"}`,
		"arguments of the wrong type":  `{"process":{"args":"a","cwd":"/"},` + goodRoot + `,` + goodLinux + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			b, err := loadBundle(writeConfig(t, config))
			if err == nil {
				_, err = b.walls(t.Context())
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
	t.Run("larger than it may be", func(t *testing.T) {
		bundle := writeConfig(t, `{`+goodProcess+`,`+goodRoot+`,`+goodLinux+`}`+strings.Repeat(" ", maxConfig))
		if _, err := loadBundle(bundle); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("got %v, want %v", err, errdefs.ErrInvalidArgument)
		}
		if got := groupOf(bundle, "id"); got != "id" {
			t.Errorf("got group %q", got)
		}
	})
	t.Run("a FIFO", func(t *testing.T) {
		bundle := t.TempDir()
		if err := unix.Mkfifo(filepath.Join(bundle, configFile), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadBundle(bundle); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("got %v, want %v", err, errdefs.ErrInvalidArgument)
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
	const caps = `"capabilities":{"bounding":["CAP_FOWNER","CAP_DAC_OVERRIDE","CAP_KILL"],"permitted":["CAP_FOWNER","CAP_DAC_OVERRIDE","CAP_DAC_READ_SEARCH"],
		"inheritable":["CAP_DAC_OVERRIDE"],"effective":["CAP_FOWNER","CAP_KILL","CAP_DAC_READ_SEARCH"],"ambient":["CAP_FOWNER","CAP_DAC_OVERRIDE"]}`
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
		{"root has the effective set, as far as it is bounding and permitted", `{"process":{"args":["a"],"cwd":"/",` + caps + `},` + goodRoot + `,` + goodLinux + `}`,
			"rootfs", "", []string{"CAP_FOWNER"}, 0o022},
		{"others have the ambient set, as far as it is inheritable too", `{"process":{"args":["a"],"cwd":"/","user":{"uid":1,"umask":7},` + caps + `},` + goodRoot + `,` + goodLinux + `}`,
			"rootfs", "", []string{"CAP_DAC_OVERRIDE"}, 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := writeConfig(t, tt.config)
			b, err := loadBundle(path)
			if err != nil {
				t.Fatal(err)
			}
			w, err := b.walls(t.Context())
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

func TestAGuestIsToldItsTraceIfItsContainerOrProcessSaysSo(t *testing.T) {
	const ask = traceContextEnv + "="
	for _, tt := range []struct {
		annotation string
		env        []string
		want       bool
		bad        string // what an error names
	}{
		{"", nil, false, ""},
		{"true", nil, true, ""},
		{"1", nil, true, ""},
		{"false", nil, false, ""},
		{"", []string{ask + "true"}, true, ""},
		{"", []string{ask + "true", ask + "false"}, false, ""},
		{"true", []string{ask + "false"}, false, ""},
		{"false", []string{ask + "true"}, true, ""},
		{"true", []string{ask}, true, ""},
		{"true", []string{"TRACEPARENT=mine"}, false, ""},
		{"true", []string{"TRACESTATE=mine"}, false, ""},
		{"", []string{ask + "true", "BAGGAGE=mine"}, false, ""},
		{"true", []string{"BAGGAGE="}, true, ""},
		{"yes", nil, false, traceContextAnnotation},
		{"yes", []string{ask + "true"}, false, traceContextAnnotation},
		{"", []string{ask + "on"}, false, traceContextEnv},
	} {
		b := &bundle{spec: &spec{Annotations: map[string]string{traceContextAnnotation: tt.annotation}}}
		got, err := b.tellsTrace(&specs.Process{Env: tt.env})
		if got != tt.want || (err != nil) != (tt.bad != "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
			t.Errorf("%q, %q: got %t, %v", tt.annotation, tt.env, got, err)
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

func TestALongSearchEndsWithItsRequest(t *testing.T) {
	b, err := loadBundle(writeConfig(t, `{"process":{"args":["a"],"cwd":"/","env":["PATH=`+strings.Repeat(`/a:`, 1000)+`"]},`+goodRoot+`,`+goodLinux+`}`))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	opened := 0
	_, _, err = findEntry(ctx, func(string, int) (*os.File, error) {
		if opened++; opened == 10 {
			cancel()
		}
		return nil, os.ErrNotExist
	}, b.spec.Process)
	if !errors.Is(err, context.Canceled) || opened != 10 {
		t.Errorf("got %v after %d files", err, opened)
	}
}

func TestAProcessRunsNoMoreThreadsThanItHasProcessorTimeFor(t *testing.T) {
	quota := func(n int64) *specs.LinuxResources { return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &n}} }
	period := func(r *specs.LinuxResources, n uint64) *specs.LinuxResources { r.CPU.Period = &n; return r }
	for _, tt := range []struct {
		name string
		r    *specs.LinuxResources
		want int
	}{
		{"no limits", nil, 0},
		{"none of the processor", &specs.LinuxResources{}, 0},
		{"no quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{}}, 0},
		{"unlimited", quota(-1), 0},
		{"half of one", quota(50000), 2},
		{"of the kernel's period", quota(400000), 4},
		{"rounded up", period(quota(25001), 10000), 3},
		{"a period of zero", period(quota(300000), 0), 3},
		{"more than there can be", period(quota(math.MaxInt64), 1), math.MaxInt32},
	} {
		if got := maxProcs(tt.r); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}
