package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// hostFile is the configuration of a host with the given content.
func hostFile(t *testing.T, format string, a ...any) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, format, a...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// collectorOf is a collector of the test's own.
func collectorOf(t *testing.T) *collector.Collector {
	t.Helper()
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The environment is containerd's, the file the operator's: what the file says goes
// first, and none of it gets any further than the shim.
func TestTheHostsFileSaysWhereTelemetryGoes(t *testing.T) {
	need(t)
	const secret, theirs = "s3cr3t-of-the-file", "s3cr3t-of-containerd"
	ours, others := collectorOf(t), collectorOf(t)
	seen := newHookLog(t)
	record := func(name, more string) string { // a program that records its environment
		return seen.hook(t, name, more).Path
	}
	runc := record("runc", "exec "+bin()+`/runc "$@" <&0`)
	file := hostFile(t, `
BinaryName = %q
[telemetry]
exporter_otlp_endpoint = "http://%s"
exporter_otlp_headers = "authorization=Bearer%%20%s"
service_name = "from-the-file"
resource_attributes = "deployment.environment.name=test"
traces_sampler = "always_on"
bsp_schedule_delay = 100
metrics_exporter = "none"
`, runc, ours.Addr(), secret)
	o := options("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://"+others.Addr()+"/v1/traces", "OTEL_EXPORTER_OTLP_TRACES_HEADERS=authorization="+theirs,
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_SERVICE_NAME=containerd", "OTEL_BSP_SCHEDULE_DELAY=200")
	o.ShimEnv = []string{hostConfigEnv + "=" + file}
	n := newNode(t, o)
	hooks := func(prefix string) oci.SpecOpts {
		return specOf(func(s *oci.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{seen.hook(t, prefix+"-hook", "")}, Poststop: []specs.Hook{seen.hook(t, prefix+"-poststop", "")}}
		})
	}

	wasm := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), hooks("wasm"))
	task, err := wasm.NewTask(wasm.ctx, cio.BinaryIO(record("logger", "exec 5>&-\ncat <&3 >/dev/null"), nil))
	if err != nil {
		t.Fatal(err)
	}
	wasm.task = task
	shim := shimPID(t, n, wasm.ID())
	wasm.mustStart(t)
	if status := wasm.exit(t); status != 0 {
		t.Fatalf("exit status %d", status)
	}
	wasm.delete(t)
	if _, status := run(t, n, image(t, n, "linux", node.Program("hello", guest(t, "hello-static"))), args("/hello"), hooks("linux")); status != 0 {
		t.Fatalf("exit status %d of a Linux container", status)
	}

	for _, s := range trace(t, ours, wasm.ID(), collector.Life...) {
		if s.Service != "from-the-file" || s.Resource["deployment.environment.name"] != "test" {
			t.Errorf("%s is of %v", s.Name, s.Resource)
		}
	}
	for _, r := range ours.Requests() {
		if got, want := r.Header.Get("Authorization"), "Bearer "+secret; got != want || r.Protocol != "http/protobuf" || r.Path != "/v1/traces" {
			t.Errorf("%s %s with %q, want %q", r.Protocol, r.Path, got, want)
		}
	}
	for _, s := range others.Spans() {
		if s.Service != "containerd" {
			t.Errorf("containerd's collector got %s of %s", s.Name, s.Service)
		}
	}
	if strings.Contains(procFile(t, uint32(n.Pid()), "environ"), secret) || shim == 0 {
		t.Error("the test has the secret where it should not")
	}
	for _, name := range []string{"runc", "wasm-hook", "wasm-poststop", "linux-hook", "linux-poststop", "logger"} {
		env := seen.read(t, name+".env")
		if _, err := os.Stat(filepath.Join(seen.dir, name+".env")); err != nil {
			t.Errorf("%s did not run: %v", name, err)
		}
		if strings.Contains(env, secret) || strings.Contains(env, ours.Addr()) || strings.Contains(env, "from-the-file") {
			t.Errorf("%s has of the file:\n%s", name, env)
		}
	}
	if log := n.Log(); strings.Contains(log, secret) || strings.Contains(log, theirs) {
		t.Errorf("a secret is in the log:\n%s", log)
	}
}

// What is wrong is said once in the log, and costs no container anything.
func TestBadVariablesAreAWarning(t *testing.T) {
	n := useNode(t)
	c := collectorOf(t)
	endpoint := "OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.Addr()
	const secret = "s3cr3t"
	for _, tt := range []struct {
		name, file string
		env        []string
		says       string // in the log
	}{
		{"an endpoint", "", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://u:" + secret + "@h:port"}, "OTEL_EXPORTER_OTLP_ENDPOINT"},
		{"an endpoint of traces", "", []string{endpoint, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + secret}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"},
		{"a protocol", "", []string{endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL"},
		{"headers", "", []string{endpoint, "OTEL_EXPORTER_OTLP_HEADERS=a=b," + secret}, "OTEL_EXPORTER_OTLP_HEADERS"},
		{"a timeout", "", []string{endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT=soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT"},
		{"a compression", "", []string{endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION=zip"}, "OTEL_EXPORTER_OTLP_COMPRESSION"},
		{"a certificate", "", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=https://" + c.Addr(), "OTEL_EXPORTER_OTLP_CERTIFICATE=/no/such.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE"},
		{"a key", "", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=https://" + c.Addr(), "OTEL_EXPORTER_OTLP_CLIENT_KEY=/dev/zero"}, "OTEL_EXPORTER_OTLP_CLIENT_KEY"},
		{"attributes", "", []string{endpoint, "OTEL_RESOURCE_ATTRIBUTES=nothing"}, "OTEL_RESOURCE_ATTRIBUTES"},
		{"a sampler", "", []string{endpoint, "OTEL_TRACES_SAMPLER=dice"}, "OTEL_TRACES_SAMPLER"},
		{"an argument of a sampler", "", []string{endpoint, "OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=7"}, "OTEL_TRACES_SAMPLER_ARG"},
		{"a size", "", []string{endpoint, "OTEL_BSP_MAX_QUEUE_SIZE=-5"}, "OTEL_BSP_MAX_QUEUE_SIZE"},
		{"a limit", "", []string{endpoint, "OTEL_SPAN_EVENT_COUNT_LIMIT=x"}, "OTEL_SPAN_EVENT_COUNT_LIMIT"},
		{"a propagator", "", []string{endpoint, "OTEL_PROPAGATORS=pigeon"}, "OTEL_PROPAGATORS"},
		{"an exporter", "", []string{endpoint, "OTEL_TRACES_EXPORTER=zipkin"}, "OTEL_TRACES_EXPORTER"},
		{"a key of the file", "[telemetry]\nexporter_otlp_endpiont = 'http://h:1'\n", []string{endpoint}, "telemetry.exporter_otlp_endpiont"},
		{"a type in the file", "[telemetry]\nexporter_otlp_headers = ['" + secret + "']\n", []string{endpoint}, "telemetry.exporter_otlp_headers"},
		{"no table in the file", "telemetry = 'on'\n", []string{endpoint}, "telemetry: not a table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := newID(t)
			dir := bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm")
			cmd := startCommand(t, n, id, dir, false, nil)
			for _, e := range cmd.Env {
				if strings.HasPrefix(e, "OTEL_") {
					t.Fatalf("the test itself has %s", e)
				}
			}
			cmd.Env = append(append(cmd.Env, "OTEL_BSP_SCHEDULE_DELAY=100", "OTEL_METRICS_EXPORTER=none"), tt.env...)
			if tt.file != "" {
				cmd.Env = append(cmd.Env, hostConfigEnv+"="+hostFile(t, "%s", tt.file))
			}
			r := dial(t, n, id, dir, quiet(t, cmd))
			ctx := n.Context(t.Context())
			if _, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: dir}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Start(ctx, &taskapi.StartRequest{ID: id}); err != nil {
				t.Fatal(err)
			}
			resp, err := r.Wait(ctx, &taskapi.WaitRequest{ID: id})
			if err != nil || resp.ExitStatus != 0 {
				t.Errorf("%v, exit status %d", err, resp.GetExitStatus())
			}
			if _, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
				t.Error(err)
			}
			shutdown(t, r)
			log, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			var warnings []string
			for line := range strings.Lines(string(log)) {
				if strings.Contains(line, "level=warning") {
					warnings = append(warnings, line)
				}
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0], tt.says) || strings.Contains(string(log), secret) {
				t.Errorf("the log has %q, want one warning that says %s\n%s", warnings, tt.says, log)
			}
		})
	}
}

// quiet runs a `start`, which has to answer, and nothing else.
func quiet(t *testing.T, cmd *exec.Cmd) (address string) {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("start: %v: %s", err, stderr.String())
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(out, &result); err != nil {
		t.Fatalf("start answers %q: %v", out, err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&result)
	if err != nil || len(again) != len(out) || len(result.ProtoReflect().GetUnknown()) > 0 {
		answer, _ := json.Marshal(&result)
		t.Errorf("start answers %q, which is more than %s", out, answer)
	}
	return result.Address
}

func TestTheServiceIsTheShimWhateverContainerdIsCalled(t *testing.T) {
	for _, tt := range []struct{ env, file, want string }{
		{"containerd", "", "containerd-shim-wazero"},
		{"mine", "", "mine"},
		{"mine", "[telemetry]\nservice_name = 'containerd'\n", "containerd"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			n, c := tracedNode(t, options(), "OTEL_SERVICE_NAME="+tt.env, hostConfigEnv+"="+hostFile(t, "%s", tt.file))
			b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
			if status != 0 {
				t.Fatalf("exit status %d", status)
			}
			var services []string
			for _, s := range trace(t, c, b.ID(), collector.Life...) {
				services = append(services, s.Service)
			}
			if slices.Sort(services); !slices.Equal(slices.Compact(services), []string{tt.want}) {
				t.Errorf("got spans of %q, want %q", slices.Compact(services), tt.want)
			}
		})
	}
}
