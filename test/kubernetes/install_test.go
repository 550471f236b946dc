package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const installedLabel = "io.containerd.wazero.v1/installed"

// apply makes what is in a file of deploy/kubernetes, as kubectl would, but for unknown
// fields, which are an error.
func apply(ctx context.Context, name string) error {
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", name))
	if err != nil {
		return err
	}
	return applyYAML(ctx, data)
}

func applyYAML(ctx context.Context, data []byte) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	groups, err := restmapper.GetAPIGroupResources(api.Discovery())
	if err != nil {
		return err
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		object := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(document, &object.Object); err != nil {
			return err
		}
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return err
		}
		resource := dynamic.ResourceInterface(client.Resource(mapping.Resource))
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			resource = client.Resource(mapping.Resource).Namespace(object.GetNamespace())
		}
		if _, err := resource.Create(ctx, object, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
			return fmt.Errorf("%s %s: %w", kind.Kind, object.GetName(), err)
		}
	}
}

// install runs the installer as in its pod, for this node, but with a containerd's
// configuration that nobody runs with.
func install(ctx context.Context, verb string, env ...string) error {
	account, scratch := filepath.Join(dir, "account"), filepath.Join(dir, "containerd.toml")
	if err := os.MkdirAll(account, 0o700); err != nil {
		return err
	}
	ca, err := os.ReadFile(config.CAFile)
	if err != nil {
		return err
	}
	text := "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n"
	for name, data := range map[string]string{filepath.Join(account, "token"): token, filepath.Join(account, "ca.crt"): string(ca), scratch: text} {
		if _, err := os.Stat(name); name == scratch && err == nil {
			continue
		}
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join("..", "..", "deploy", "install"), verb)
	cmd.Env = append(append(os.Environ(), "SOURCE="+bin("containerd-shim-wazero-v1"), "DESTINATION="+filepath.Join(dir, "opt"), "CONTAINERD="+bin("containerd"), "CONFIG="+scratch,
		"RESTART=true", "NODE_NAME="+nodeName, "ACCOUNT="+account, "KUBERNETES_SERVICE_HOST="+nodeIP, "KUBERNETES_SERVICE_PORT=6443"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", verb, err, out)
	}
	return nil
}

func label(t *testing.T) string {
	t.Helper()
	n, err := api.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n.Labels[installedLabel]
}

// The label comes with the installation and goes with it. No other test can run
// meanwhile, for its pods ask for the label.
func TestANodeIsLabelledWhileTheShimIsInstalled(t *testing.T) {
	if got := label(t); got != "true" {
		t.Errorf("installed: got %q, want true", got)
	}
	if err := install(t.Context(), "install", "NODE_NAME=no-such-node"); err == nil || !strings.Contains(err.Error(), "node no-such-node: cannot be labelled") {
		t.Errorf("a node that is not there: got %v", err)
	}
	if err := install(t.Context(), "uninstall"); err != nil {
		t.Error(err)
	}
	if got := label(t); got != "" {
		t.Errorf("uninstalled: got %q, want none", got)
	}
	if err := install(t.Context(), "install"); err != nil {
		t.Fatal(err)
	}
	if got := label(t); got != "true" {
		t.Errorf("installed again: got %q, want true", got)
	}
}

// In a cluster without controllers nothing comes of them: what is asked is whether the
// API server takes them, to the last field.
func TestTheManifestsAreTaken(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"installer.yaml", "uninstaller.yaml"} {
		if err := apply(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"installer", "uninstaller"} {
		set, err := api.AppsV1().DaemonSets("containerd-shim-wazero").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		spec := set.Spec.Template.Spec
		if c := spec.InitContainers[0]; c.SecurityContext == nil || c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged || !spec.HostPID || len(c.VolumeMounts) != 1 {
			t.Errorf("%s: what changes the node has not what it needs: %v", name, c)
		}
		if c := spec.Containers[0]; len(c.VolumeMounts) != 0 || c.SecurityContext == nil || c.SecurityContext.Privileged != nil || !*c.SecurityContext.RunAsNonRoot {
			t.Errorf("%s: what stays has more than it needs: %v", name, c)
		}
		// That it would be let run there is the API server's to say, too.
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-", Namespace: set.Namespace}, Spec: spec}
		pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
		pod.Spec.NodeName = "another-node"
		if _, err := api.CoreV1().Pods(set.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			t.Errorf("a pod of %s: %v", name, err)
		}
	}
}

// shims is what runtime-class-manager's main branch of February 2026 says a Shim is
// (api/v1alpha1, its validation included), in the words of the API server.
func shims() map[string]any {
	text := map[string]any{"type": "string"}
	object := func(properties map[string]any, required ...any) map[string]any {
		return map[string]any{"type": "object", "properties": properties, "required": append([]any{}, required...)}
	}
	enum := func(values ...any) map[string]any { return map[string]any{"type": "string", "enum": values} }
	texts := map[string]any{"type": "object", "additionalProperties": text}
	spec := object(map[string]any{
		"nodeSelector":             texts,
		"containerdRuntimeOptions": texts,
		"fetchStrategy": object(map[string]any{
			"type":     text,
			"anonHttp": object(map[string]any{"location": text}, "location"),
			"platforms": map[string]any{"type": "array", "items": object(map[string]any{
				"os": enum("linux"), "arch": enum("amd64", "arm64", "x86_64", "aarch64"), "location": text, "sha256": text,
			}, "os", "arch", "location")},
		}),
		"runtimeClass":    object(map[string]any{"name": text, "handler": text}, "name", "handler"),
		"rolloutStrategy": object(map[string]any{"type": enum("rolling", "recreate"), "rolling": object(map[string]any{"maxUpdate": map[string]any{"type": "integer"}}, "maxUpdate")}, "type"),
	}, "fetchStrategy", "runtimeClass", "rolloutStrategy")
	return map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "shims.runtime.spinkube.dev"},
		"spec": map[string]any{
			"group": "runtime.spinkube.dev", "scope": "Cluster",
			"names": map[string]any{"kind": "Shim", "listKind": "ShimList", "plural": "shims", "singular": "shim"},
			"versions": []any{map[string]any{
				"name": "v1alpha1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": object(map[string]any{"spec": spec})},
			}},
		},
	}
}

func TestTheShimResourceOfRuntimeClassManagerIsTaken(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(shims())
	if err != nil {
		t.Fatal(err)
	}
	if err := applyYAML(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	file, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", "runtime-class-manager.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// The server takes a while to know the kind.
	err = until(ctx, "the resource is taken", func() error {
		err := applyYAML(ctx, file)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return err
		}
		if err != nil {
			t.Error(err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// A field that it does not have would have been told.
	wrong := bytes.Replace(bytes.Replace(file, []byte("sha256:"), []byte("sha512:"), 1), []byte("name: wazero-v1"), []byte("name: other"), 1)
	if err := applyYAML(ctx, wrong); err == nil || !strings.Contains(err.Error(), "sha512") {
		t.Errorf("an unknown field: got %v", err)
	}
	// It names the handler after the file, and uninstalls by the resource's name.
	var shim struct {
		Metadata struct{ Name string }
		Spec     struct {
			RuntimeClass  struct{ Handler string }
			FetchStrategy struct {
				Platforms []struct{ Arch, Location string }
			}
		}
	}
	if err := yaml.Unmarshal(file, &shim); err != nil {
		t.Fatal(err)
	}
	const name = "wazero-v1" // containerd-shim-NAME
	if shim.Metadata.Name != name || shim.Spec.RuntimeClass.Handler != name {
		t.Errorf("names: %+v", shim)
	}
	for _, p := range shim.Spec.FetchStrategy.Platforms {
		if !strings.HasSuffix(p.Location, "linux-"+p.Arch+".shim.tar.gz") {
			t.Errorf("%s is fetched from %s", p.Arch, p.Location)
		}
	}
}

// What a pod takes beside its containers is within what the class says: its shim,
// which is in containerd's cgroup, and what is in its own cgroup of memory beside
// that of its containers.
func TestTheOverheadOfAPodIsWithinThatOfItsClass(t *testing.T) {
	t.Parallel()
	pod := create(t, corev1.PodSpec{Containers: []corev1.Container{wasm("print", "up", "idle")}})
	pod = ready(t, pod)
	overhead := pod.Spec.Overhead[corev1.ResourceMemory]
	if overhead.IsZero() || pod.Spec.NodeSelector[installedLabel] != "true" {
		t.Fatalf("of its class the pod has %v, %v", pod.Spec.Overhead, pod.Spec.NodeSelector)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	sandboxes, err := machine.Pods().ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(pod.UID)}}})
	if err != nil || len(sandboxes.Items) != 1 {
		t.Fatalf("got %v, %v", sandboxes, err)
	}
	var shim, pause int64
	for _, process := range processes {
		cgroups, _ := os.ReadFile(filepath.Join(process, "cgroup"))
		name, _ := os.ReadFile(filepath.Join(process, "comm"))
		// Its folder is its bundle.
		folder, _ := os.Readlink(filepath.Join(process, "cwd"))
		program, _ := os.Readlink(filepath.Join(process, "exe"))
		switch {
		case strings.Contains(string(cgroups), "pod"+string(pod.UID)) && strings.HasPrefix(string(name), "pause"):
			pause += pss(t, process)
		case filepath.Base(program) == "containerd-shim-wazero-v1" && filepath.Base(folder) == sandboxes.Items[0].Id:
			shim += pss(t, process)
		}
	}
	t.Logf("shim %d KiB, pause %d KiB, of %s", shim, pause, overhead.String())
	if shim == 0 || pause == 0 {
		t.Fatal("not found")
	}
	if got := (shim + pause) << 10; got > overhead.Value() {
		t.Errorf("takes %d bytes, its class says %d", got, overhead.Value())
	}
}

// pss is the proportional set size of a process, in KiB.
func pss(t *testing.T, process string) int64 {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(process, "smaps_rollup"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s: no Pss in %s", process, data)
	return 0
}
