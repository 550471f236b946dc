package shim

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

func request(t *testing.T, v any) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func text(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestContract24OptionsAreTheHostsOverriddenByTheRequests(t *testing.T) {
	host := "SystemdCgroup = true\nBinaryName = \"crun\"\nIoUid = 7\n"
	for _, tt := range []struct {
		name    string
		request *anypb.Any
		want    *options.Options
	}{
		{"no request", nil, &options.Options{SystemdCgroup: true, BinaryName: "crun", IoUid: 7}},
		{"an empty one", &anypb.Any{}, &options.Options{SystemdCgroup: true, BinaryName: "crun", IoUid: 7}},
		{"runc's", request(t, &options.Options{BinaryName: "runc", Root: "/r"}), &options.Options{SystemdCgroup: true, BinaryName: "runc", Root: "/r", IoUid: 7}},
		{"runc's, empty", request(t, &options.Options{}), &options.Options{SystemdCgroup: true, BinaryName: "crun", IoUid: 7}},
		{"TOML", request(t, &runtimeoptions.Options{TypeUrl: "x", ConfigBody: []byte("SystemdCgroup = false\nShimCgroup = \"/s\"\nIoGid = 8")}), &options.Options{BinaryName: "crun", ShimCgroup: "/s", IoUid: 7, IoGid: 8}},
		{"TOML, empty", request(t, &runtimeoptions.Options{}), &options.Options{SystemdCgroup: true, BinaryName: "crun", IoUid: 7}},
		{"a TOML file", request(t, &runtimeoptions.Options{ConfigPath: text(t, "o.toml", "NoPivotRoot = true\nNoNewKeyring = true\nBinaryName = ''")}), &options.Options{SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IoUid: 7}},
		{"an unknown key", request(t, &runtimeoptions.Options{ConfigBody: []byte("TypeUrl = 'x'\nNoSuch = 1\nRoot = '/r'\n[Table]\nA = 1")}), &options.Options{SystemdCgroup: true, BinaryName: "crun", Root: "/r", IoUid: 7}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(hostConfigEnv, text(t, "host.toml", host))
			got, _, err := readOptions(tt.request)
			if err != nil || !proto.Equal(got, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestUnknownKeysAreNamed(t *testing.T) {
	o := &options.Options{}
	got, err := decode(o, "/f", []byte("# one\nNoSuch = 1\nTypeUrl = 'x'\nRoot = '/r'\n[Table]\nA = 1\n"))
	want := []string{"/f, line 2: NoSuch", "/f, line 5: Table"}
	if err != nil || !slices.Equal(got, want) || o.Root != "/r" {
		t.Errorf("got %q, %v, root %q, want %q", got, err, o.Root, want)
	}
}

func TestBadOptionsSayWhatIsWrongAndWhere(t *testing.T) {
	runc := request(t, &options.Options{}).TypeUrl
	file := text(t, "o.toml", "Root = 1\n")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		host    string // the content of the host's file
		request *anypb.Any
		class   error
		says    string
	}{
		{"an unknown type", "", &anypb.Any{TypeUrl: "example.com/Options", Value: []byte{1}}, errdefs.ErrInvalidArgument, "example.com/Options"},
		{"a type of something else", "", request(t, &taskapi.StateRequest{ID: "x"}), errdefs.ErrInvalidArgument, "StateRequest"},
		{"no type", "", &anypb.Any{Value: []byte{1}}, errdefs.ErrInvalidArgument, `""`},
		{"broken", "", &anypb.Any{TypeUrl: runc, Value: []byte{0xff}}, errdefs.ErrInvalidArgument, runc},
		{"malformed TOML", "", request(t, &runtimeoptions.Options{ConfigBody: []byte("Root = '/r'\nRoot == 1")}), errdefs.ErrInvalidArgument, "TOML, line 2"},
		{"a value of the wrong type", "", request(t, &runtimeoptions.Options{ConfigBody: []byte("\n\nSystemdCgroup = 'yes'")}), errdefs.ErrInvalidArgument, "TOML, line 3"},
		{"a number out of range", "", request(t, &runtimeoptions.Options{ConfigBody: []byte("IoUid = -1")}), errdefs.ErrInvalidArgument, "TOML"},
		{"a malformed file", "", request(t, &runtimeoptions.Options{ConfigPath: file}), errdefs.ErrInvalidArgument, file + ", line 1"},
		{"a file that is not there", "", request(t, &runtimeoptions.Options{ConfigPath: "/no/such"}), errdefs.ErrInvalidArgument, "/no/such"},
		{"a device without an end", "", request(t, &runtimeoptions.Options{ConfigPath: "/dev/zero"}), errdefs.ErrInvalidArgument, "/dev/zero: not a regular file"},
		{"a FIFO that nobody writes", "", request(t, &runtimeoptions.Options{ConfigPath: fifo}), errdefs.ErrInvalidArgument, fifo + ": not a regular file"},
		{"a file that is too large", "", request(t, &runtimeoptions.Options{ConfigPath: text(t, "large", strings.Repeat("#", maxOptions+1))}), errdefs.ErrInvalidArgument, "larger than"},
		{"a relative path", "", request(t, &runtimeoptions.Options{ConfigPath: "o.toml"}), errdefs.ErrInvalidArgument, "o.toml: not an absolute path"},
		{"the host's malformed", "\n[Root\n", nil, errdefs.ErrFailedPrecondition, "host.toml, line 2"},
		{"the host's of the wrong type", "NoPivotRoot = 3", nil, errdefs.ErrFailedPrecondition, "host.toml, line 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(hostConfigEnv, text(t, "host.toml", tt.host))
			_, _, err := readOptions(tt.request)
			if !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v that says %q", err, tt.class, tt.says)
			}
		})
	}
	t.Run("the host's named and not there", func(t *testing.T) {
		t.Setenv(hostConfigEnv, "/no/such")
		if _, _, err := readOptions(nil); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "/no/such") {
			t.Errorf("got %v", err)
		}
	})
}

func TestTheTablesForCompilingAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	t.Setenv(hostConfigEnv, path)
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[compile]\nmemory = \"2GiB\"\nprocessors = 1.5\nat_once = 3\ntime = \"90s\"\n[cache]\nsize = 1048576\nentries = 7\n")
	h, err := readHostFile()
	if err != nil {
		t.Fatal(err)
	}
	got, err := h.compile.limits()
	if want := (compileLimit{2 << 30, 1.5, 3, 90 * time.Second}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if r := got.resources(); *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 || *r.Memory.Limit != 2<<30 {
		t.Errorf("got %+v, %+v", r.CPU, r.Memory)
	}
	if got, want := h.cache.limits(), (module.Limits{Size: 1 << 20, Entries: 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	write("")
	if h, err = readHostFile(); err != nil {
		t.Fatal(err)
	}
	if got, err := h.compile.limits(); err != nil || got.AtOnce != 2 || got.Memory == 0 || got.resources().CPU != nil {
		t.Errorf("without a table: %+v, %v", got, err)
	}
	for text, says := range map[string]string{
		"[compile]\nmemory = \"much\"":            "line 2",
		"[compile]\nmemory = \"1MiB\"":            "compile.memory: 1048576 bytes: want 67108864 at least",
		"[compile]\nmemory = -1":                  "compile.memory",
		"[compile]\nprocessors = -1":              "compile.processors",
		"[compile]\nprocessors = 0.001":           "compile.processors",
		"[compile]\nprocessors = nan":             "compile.processors",
		"[compile]\nprocessors = inf":             "compile.processors",
		"[compile]\nprocessors = \"2\"":           "line 2",
		"[compile]\nat_once = 100000":             "compile.at_once: 100000: want 1 to 1024",
		"[compile]\nat_once = -1":                 "compile.at_once",
		"[compile]\nat_once = 1.5":                "line 2",
		"[compile]\ntime = \"1ms\"":               "compile.time: 1ms: want a second at least",
		"[compile]\ntime = \"long\"":              "line 2",
		"compile = 1":                             "line 1",
		"[cache]\nsize = -1":                      "cache.size",
		"[cache]\nsize = \"-1\"":                  "line 2",
		"[cache]\nentries = -1":                   "cache.entries",
		"[cache]\nsize = [1]":                     "line 2",
		"cache = \"big\"":                         "line 1",
		"[cache]\nsize = \"1 parsec\"":            "1 parsec",
		"[cache]\nentries = 99999999999999999999": "line 2",
	} {
		write(text)
		_, _, err := readOptions(nil)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want %q", text, err, says)
		}
	}
	write("[compile]\nmemery = 1\n[cache]\nsice = 2")
	if _, unknown, err := readOptions(nil); err != nil || len(unknown) != 2 {
		t.Errorf("got %q, %v, want two unknown keys", unknown, err)
	}
}
