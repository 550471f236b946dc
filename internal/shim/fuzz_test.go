package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	runcshim "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/otlp"
)

// Everything that is read here may be anything. Without -fuzz each target gets its
// seeds, among them what real clients write, and what fuzzing has found.

// realConfigs are the configurations in testdata/config: as ctr and the CRI plugin wrote them, and
// with what the kubelet and nerdctl add.
func realConfigs(t testing.TB) (configs [][]byte) {
	t.Helper()
	paths, err := filepath.Glob("testdata/config/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("testdata/config: %d files, %v", len(paths), err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		configs = append(configs, data)
	}
	return configs
}

func TestConfigurationsOfRealClientsAreAccepted(t *testing.T) {
	for _, config := range realConfigs(t) {
		b, err := loadBundle(writeConfig(t, string(config)))
		if err == nil {
			_, err = b.walls(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// sameFields reports where the fields of partial, a structure, are not those of
// the same name of whole.
func sameFields(partial, whole reflect.Value) error {
	for i := range partial.NumField() {
		name := partial.Type().Field(i).Name
		got, want := partial.Field(i), whole.FieldByName(name)
		if !want.IsValid() {
			return fmt.Errorf("%s: not of the specification", name)
		}
		if got.Type() != want.Type() && got.Kind() == reflect.Pointer {
			if got.IsNil() != want.IsNil() {
				return fmt.Errorf("%s: got %v, want %v", name, got, want)
			}
			if !got.IsNil() {
				if err := sameFields(got.Elem(), want.Elem()); err != nil {
					return fmt.Errorf("%s.%w", name, err)
				}
			}
			continue
		}
		if !reflect.DeepEqual(got.Interface(), want.Interface()) {
			return fmt.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	return nil
}

// FuzzConfig reads config.json, to what the sandbox and the instance process are
// told: what there is of it is what the whole specification has, and what comes of
// it can be used.
func FuzzConfig(f *testing.F) {
	for _, config := range realConfigs(f) {
		f.Add(config)
	}
	for _, process := range []string{
		goodProcess, `"process":null`, `"process":{"args":null,"cwd":"/"}`, `"process":{"args":["a\u0000b"],"cwd":"/"}`, `"process":{"args":["/a"],"cwd":"/\u0000"}`,
		`"process":{"args":["/a"],"cwd":"/","env":[null,"","=x","A","A=\u0000"]}`, `"process":{"args":["/a"],"cwd":"/","user":null,"capabilities":null,"rlimits":[null]}`,
		`"process":{"args":["/a"],"cwd":"/","user":{"uid":4294967295,"umask":4294967295,"additionalGids":[4294967295]},"oomScoreAdj":-2147483648}`,
		`"process":{"args":["/a"],"cwd":"/","user":{"uid":-1}}`, `"process":{"args":["/a"],"cwd":"/","user":{"uid":1e10}}`,
		`"process":{"args":["` + "\xff\xfe" + `"],"cwd":"/` + "\xff" + `"},"process":{"args":["/b"]},"PROCESS":{"CWD":"/c"}`,
	} {
		f.Add([]byte(`{` + process + `,` + goodRoot + `,` + goodLinux + `}`))
	}
	for _, more := range []string{
		`"linux":null`, `"root":null`, `"mounts":[null]`, `"hooks":{"prestart":[null],"poststop":null}`, `"hooks":{"prestart":[{"path":"/x","timeout":-1}]}`,
		`"annotations":null`, `"hostname":null`, `"hostname":"` + strings.Repeat("h", 65) + `"`, `"domainname":"\u0000"`,
		`"mounts":[{"destination":"/a\u0000","options":[null,"bind",""],"uidMappings":[null]}]`,
		`"linux":{"namespaces":[null],"devices":[null],"resources":{"memory":{"limit":null},"devices":[null],"pids":null}}`,
		`"linux":{"namespaces":[{"type":"pid","path":"/proc/self/ns/pid"},{"type":"uts"},{"type":"user","path":"/proc/self/ns/user"}]}`,
		`"linux":{"namespaces":[{"type":"ipc","path":"/dev/ptmx"}]}`,
		`"linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"hostID":4294967295,"size":4294967295}],"gidMappings":[{"containerID":4294967295,"size":1}]}`,
		`"linux":{"resources":{"memory":{"limit":-9223372036854775808},"cpu":{"shares":18446744073709551615,"quota":-1}},"cgroupsPath":"a:b:c"}`,
		`"linux":{"sysctl":{"":"","net.ipv4/x":null}}`, `"x":` + strings.Repeat(`{"x":`, 200) + `1` + strings.Repeat(`}`, 200),
		`"x":` + strings.Repeat("[", 11000), `"mounts":[` + strings.Repeat("{},", 1000) + `{}]`,
	} {
		f.Add([]byte(`{` + goodProcess + `,` + goodRoot + `,` + goodLinux + `,` + more + `}`))
	}
	for _, whole := range []string{"", "null", "[]", "{}", `{"process":[]}`, "\xef\xbb\xbf{}", "{}{}"} {
		f.Add([]byte(whole))
	}
	dir := f.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o700); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs", "app.wasm"), []byte("\x00asm\x01\x00\x00\x00"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, configFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		var whole specs.Spec
		wholeErr := json.Unmarshal(data, &whole)
		_ = groupOf(dir, "id")
		b, err := loadBundle(dir)
		if err != nil {
			invalid(t, err, configFile)
			if rootless := wholeErr == nil && (whole.Root == nil || whole.Root.Path == ""); wholeErr == nil && !rootless {
				t.Errorf("got %v of a specification", err)
			}
			return
		}
		if wholeErr == nil {
			if err := sameFields(reflect.ValueOf(b.spec).Elem(), reflect.ValueOf(whole)); err != nil {
				t.Error(err)
			}
		}
		linux := b.linuxProgram(t.Context())
		if linux != "" && !filepath.IsAbs(linux) {
			t.Errorf("the Linux program %q has no absolute path", linux)
		}
		w, err := b.walls(t.Context())
		if err != nil {
			invalid(t, err, configFile)
			return
		}
		if !filepath.IsAbs(w.Rootfs) || !filepath.IsAbs(w.Cwd) || len(w.Hostname) > 64 || w.User.UID == math.MaxUint32 {
			t.Errorf("got %+v", w)
		}
		for _, m := range w.Mounts {
			if !filepath.IsAbs(m.Destination) {
				t.Errorf("a mount at %q", m.Destination)
			}
		}
		c := b.instanceConfig(b.spec.Process)
		if len(c.Args) == 0 || strings.Contains(strings.Join(c.Args, "")+strings.Join(c.Env, ""), "\x00") {
			t.Errorf("got %+v", c)
		}
		var told instance.Config
		message, err := json.Marshal(c)
		if err == nil {
			err = json.Unmarshal(message, &told)
		}
		if err != nil || !slices.Equal(told.Args, c.Args) || !slices.Equal(told.Env, c.Env) || told.Cwd != c.Cwd || told.Umask != c.Umask {
			t.Errorf("the process is told %+v, %v, want %+v", told, err, c)
		}
	})
}

// invalid fails a test whose error does not say what it is about, or not that it
// is the client's fault.
func invalid(t *testing.T, err error, about string) {
	t.Helper()
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), about) {
		t.Errorf("got %v, want an invalid argument that names %s", err, about)
	}
	if text := toStatus(err).Error(); !utf8.ValidString(text) || len(text) > 2*maxErrorText {
		t.Errorf("containerd is told %q", text)
	}
}

// FuzzOptions reads the options of a Create request, of every type that those can
// be: nothing else than options comes of them.
func FuzzOptions(f *testing.F) {
	for _, text := range []string{
		"", "SystemdCgroup = true\nBinaryName = \"crun\"\nIoUid = 7\n", "Root = 1", "[[[", "a = {b = {c = [1, {}]}}", "IoUid = 99999999999", "NoPivotRoot = 'yes'\n",
		"TypeUrl = 'x'\n\"\\u0000\" = 1", "Root = '''\n" + "\xff" + "'''", strings.Repeat("a.", 500) + "b = 1", strings.Repeat("[[a]]\n", 100), "Root = '/r'\nRoot = '/s'",
		"d = 1979-05-27T07:32:00Z\nf = inf", "x = [" + strings.Repeat("[", 500),
	} {
		f.Add(byte(0), []byte(text))
		data, err := proto.Marshal(&runtimeoptions.Options{TypeUrl: "t", ConfigBody: []byte(text)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(1), data)
	}
	for _, m := range []proto.Message{
		&options.Options{SystemdCgroup: true, IoUid: math.MaxUint32, CriuImagePath: "/x", Root: "/r"},
		&runtimeoptions.Options{ConfigPath: "relative"}, &runtimeoptions.Options{ConfigPath: "/dev/zero"}, &runtimeoptions.Options{ConfigPath: "/"},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(1), data)
		f.Add(byte(2), data)
	}
	f.Add(byte(0), []byte("SystemdCgroup = true\n[telemetry]\nexporter_otlp_endpoint = 'grpc://h:4317'\nbsp_schedule_delay = 100\ntraces_sampler_arg = 0.5\nsdk_disabled = false\nx = [1]"))
	f.Add(byte(3), []byte(`{"type":"resources"}`))
	types := []string{"", mustURL(f, &runtimeoptions.Options{}), mustURL(f, &options.Options{}), mustURL(f, &specs.LinuxResources{})}
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		o := &options.Options{IoUid: 7}
		if kind == 0 {
			h := hostFile{path: "host.toml", options: o}
			err := h.decode(data)
			if err == nil {
				var v otlp.Variables
				v, _, err = h.variables()
				v.Use(func() {})
			}
			if err != nil && !strings.Contains(err.Error(), "host.toml") {
				t.Errorf("got %v: which file?", err)
			}
			return
		}
		url := types[int(kind)%len(types)]
		if url == types[1] {
			// What a file has is what a body has; which file, the fuzzer is not to choose.
			var r runtimeoptions.Options
			if proto.Unmarshal(data, &r) == nil && r.ConfigPath != "" && r.ConfigPath != "/dev/zero" && r.ConfigPath != "/" && filepath.IsAbs(r.ConfigPath) {
				return
			}
		}
		if _, err := override(o, &anypb.Any{TypeUrl: url, Value: data}); err != nil {
			invalid(t, err, "options of type")
			return
		}
		if _, err := proto.Marshal(o); err != nil { // it goes on to runc, and to disk
			t.Error(err)
		}
	})
}

func mustURL(t testing.TB, v any) string {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		t.Fatal(err)
	}
	return a.TypeUrl
}

// FuzzStart reads the standard input of a `start`: whose container it is has been
// said by the command line.
func FuzzStart(f *testing.F) {
	s := starter{id: "c1", namespace: "ns", address: "/c.sock"}
	for _, m := range []proto.Message{
		&bootapi.BootstrapParams{InstanceID: "c1", Namespace: "ns", ContainerdTtrpcAddress: "/t"},
		&bootapi.BootstrapParams{InstanceID: "c2", Namespace: "ns"}, &bootapi.BootstrapParams{},
		&bootapi.BootstrapParams{InstanceID: "c1", Namespace: "ns", Extensions: []*bootapi.Extension{nil, {}, {Value: &anypb.Any{TypeUrl: mustURL(f, &options.Options{}), Value: []byte{0xff}}}}},
		&anypb.Any{TypeUrl: mustURL(f, &options.Options{}), Value: []byte{8, 1}}, &anypb.Any{TypeUrl: "x"},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(nil))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, input []byte) {
		p, ok := s.params(input)
		if !ok {
			p = s.oldParams(input)
		}
		if p.InstanceID != s.id || p.Namespace != s.namespace {
			t.Errorf("the start is of %s in %s", p.InstanceID, p.Namespace)
		}
		_ = shimCgroup(hostFile{options: &options.Options{}}, p)
	})
}

// FuzzCommandLine reads the arguments that containerd, or anybody, starts the
// program with.
func FuzzCommandLine(f *testing.F) {
	for _, args := range []string{"-namespace\nns\n-address\n/c\n-id\nc1\nstart", "-id\nstart", "--id=\x00\nstart", "-debug=maybe\nstart", "-h", "--", "-namespace\nns\n--\nstart"} {
		f.Add(args)
	}
	f.Fuzz(func(t *testing.T, args string) {
		if s, ok := parseStart(strings.Split(args, "\n")); ok && s.namespace == "" {
			t.Errorf("got %+v: which namespace?", s)
		}
		_ = flag.Lookup("id") // parseStart has flags of its own: these are package shim's
	})
}

// FuzzBundleFiles reads what shims, this one or another, have left in a bundle for
// a `delete`: the status is one that a process can have.
func FuzzBundleFiles(f *testing.F) {
	f.Add([]byte(`{"Timestamp":"2026-01-02T03:04:05Z","Pid":7,"Status":3}`), []byte("7\n"), []byte(`{"address":"unix:///run/s","protocol":"ttrpc","version":3}`), []byte(`{"systemd_cgroup":true}`))
	f.Add([]byte(`{"Timestamp":"2026-01-02T03:04:05Z","Pid":7,"Status":-1}`), []byte("-1"), []byte(`null`), []byte(`{"systemd_cgroup":null}`))
	f.Add([]byte(`{"Timestamp":"9999-12-31T23:59:59Z","Pid":99999999999999999999,"Status":256}`), []byte("99999999999999999999"), []byte(`{"address":1}`), []byte(``))
	f.Add([]byte(`{"Timestamp":"0001-01-01T00:00:00Z","Pid":4294967296,"Status":4294967295}`), []byte("4294967297"), []byte(`[`), []byte("\xff"))
	f.Add([]byte(nil), []byte(nil), []byte(nil), []byte(nil))
	dir := f.TempDir()
	log.L.Logger.SetOutput(io.Discard)
	f.Fuzz(func(t *testing.T, exit, pid, bootstrap, opts []byte) {
		for name, data := range map[string][]byte{exitFile: exit, pidFile: pid, "bootstrap.json": bootstrap, "options.json": opts} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := stopStatus(t.Context(), dir)
		if s.Pid < 0 || s.Pid > math.MaxInt32 || s.ExitStatus < 0 || s.ExitStatus > math.MaxUint8 || s.ExitedAt.IsZero() {
			t.Errorf("got %+v", s)
		}
		if _, err := socketAddress(namespaces.WithNamespace(t.Context(), "ns"), dir, "c1"); err != nil {
			t.Error(err)
		}
		if err := removeCgroup(dir, "c1"); err == nil {
			t.Error("a cgroup of a bundle without a configuration was removed")
		}
	})
}

// FuzzStreamURI reads the names of streams: they are plain paths, FIFOs, files or
// loggers, and a logger gets what its URI says.
func FuzzStreamURI(f *testing.F) {
	for _, path := range []string{
		"", "/run/fifo", "fifo:///run/fifo", "file:///var/log/x", "file://relative", "binary:///bin/logger?key=value&a=b=c", "binary:///no%ff?%zz", "binary-v2:///x?k&k=v", "binary://host/path",
		"binary:", "binary:opaque", "file:", "npipe://x", "://", "%zz://", "\x00", "/a:b", "a:b", "binary:///x?=%00", "BINARY:///x", "file:///a/../b",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		uri := parseURI(path)
		logger := loggerURI(path)
		plain, err := existing(path)
		if err == nil && plain != path && (uri == nil || uri.Scheme != "fifo") {
			t.Errorf("%q is the file %q", path, plain)
		}
		if logger == nil {
			return
		}
		if err == nil {
			t.Errorf("%q is a logger and the file %q", path, plain)
		}
		cmd := runcshim.NewBinaryCmd(logger, "c1", "ns")
		if cmd.Path != logger.Path && filepath.IsAbs(logger.Path) {
			t.Errorf("%q runs %q", path, cmd.Path)
		}
		if !slices.Contains(cmd.Env, "CONTAINER_ID=c1") || !slices.Contains(cmd.Env, "CONTAINER_NAMESPACE=ns") {
			t.Errorf("%q runs with %q", path, cmd.Env)
		}
		// Arguments and environment are the URI's: whatever it is, no second program.
		if _, err := url.ParseQuery(logger.RawQuery); err != nil && len(cmd.Args) > 1+2*strings.Count(logger.RawQuery, "&")+2 {
			t.Errorf("%q has the arguments %q", path, cmd.Args)
		}
	})
}

// FuzzUpdate reads the limits of an Update request.
func FuzzUpdate(f *testing.F) {
	for _, text := range []string{
		`{"memory":{"limit":67108864}}`, `{"memory":{"limit":null},"cpu":null,"pids":{"limit":-1}}`, `{"devices":[null]}`, `{"blockIO":{"weight":65536}}`, `null`, `[]`, ``,
		`{"unified":{"memory.max":null,"../../x":"1"}}`, `{"cpu":{"shares":-1}}`, `{"memory":` + strings.Repeat(`{"x":`, 100),
	} {
		f.Add(true, []byte(text))
		f.Add(false, []byte(text))
	}
	resources := mustURL(f, &specs.LinuxResources{})
	f.Fuzz(func(t *testing.T, ours bool, data []byte) {
		a := &anypb.Any{TypeUrl: resources, Value: data}
		if !ours {
			a.TypeUrl = mustURL(t, &specs.Process{})
		}
		r, err := limits(a)
		switch {
		case err != nil:
			invalid(t, err, "resources of type")
		case r == nil || !ours:
			t.Errorf("got %+v", r)
		}
	})
}

// FuzzTerminal types anything into a terminal: a signal is told of only for its own
// character, and everything that is typed gets to the process.
func FuzzTerminal(f *testing.F) {
	for _, typed := range []string{"", "hello\n", "\x03", "a\x03b\x1c", "\x04", "\x11\x13", "\x1b[31m", "\xff\xfe\x00", "\x16\x03", strings.Repeat("x", 5000), "\r\n\r"} {
		f.Add([]byte(typed), true)
		f.Add([]byte(typed), false)
	}
	f.Fuzz(func(t *testing.T, typed []byte, signals bool) {
		typed = typed[:min(len(typed), 64<<10)]
		inR, inW, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		outR, outW, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer outR.Close()
		term, slave, err := newTerminal(inR, outW, owner{})
		if err != nil {
			t.Fatal(err)
		}
		defer term.close()
		mode, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		// Raw, so that the process gets it as it is, but for signals.
		mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
		if signals {
			mode.Lflag = unix.ISIG
		}
		if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, mode); err != nil {
			t.Fatal(err)
		}
		if slave, err = pollable(slave); err != nil {
			t.Fatal(err)
		}
		told := map[unix.Signal]bool{}
		got := make(chan []byte)
		go func() {
			var all []byte
			for buf := make([]byte, 4096); signals || len(all) < len(typed); {
				n, err := slave.Read(buf)
				if err != nil {
					break
				}
				all = append(all, buf[:n]...)
			}
			got <- all
		}()
		go io.Copy(io.Discard, outR)
		go func() { inW.Write(typed); inW.Close() }()
		term.copies.Go(func() { term.copyInput(func(sig unix.Signal) { told[sig] = true }) })
		term.copies.Wait()
		wait := 10 * time.Second
		if signals {
			wait = 0 // what was typed before a signal is gone
		}
		_ = slave.SetReadDeadline(time.Now().Add(wait))
		if all := <-got; !signals && !bytes.Equal(all, typed) {
			t.Errorf("the process reads %q, want %q", all, typed)
		}
		slave.Close()
		for sig, char := range map[unix.Signal]byte{unix.SIGINT: mode.Cc[unix.VINTR], unix.SIGQUIT: mode.Cc[unix.VQUIT]} {
			if want := signals && bytes.IndexByte(typed, char) >= 0; told[sig] != want {
				t.Errorf("%v: told %v, want %v", sig, told[sig], want)
			}
		}
	})
}
