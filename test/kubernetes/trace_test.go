package kubernetes

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

// The kubelet, containerd and the shim are traced: a pod's first start is one trace,
// from the kubelet's decision to the exit codes of the guests.
func TestTheTraceOfAPodBeginsInTheKubelet(t *testing.T) {
	t.Parallel()
	pod := create(t, corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{wasm("exit", "7")}})
	pod = phase(t, pod, corev1.PodFailed)
	id := strings.TrimPrefix(status(pod, "wasm").ContainerID, "containerd://")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	create, err := spans.Find(ctx, "task.create", id)
	if err != nil {
		t.Fatal(err)
	}
	var trace []collector.Span
	find := func(name string) (found collector.Span) {
		for _, s := range trace {
			if s.Name == name && s.Attrs["container.id"] == id {
				found = s
			}
		}
		return found
	}
	err = until(ctx, "the trace is whole", func() error {
		trace = spans.Trace(create.TraceID)
		for _, name := range []string{"module.resolve", "task.start", "module.start", "module.run", "task.wait"} {
			if find(name).ID == "" {
				return fmt.Errorf("no %s", name)
			}
		}
		if orphans := collector.Orphans(trace); len(orphans) > 0 {
			return fmt.Errorf("no parents of %q", orphans)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v:\n%s", err, collector.Tree(trace))
	}
	const start = "runtime.v1.RuntimeService/StartContainer"
	for name, calls := range map[string][2]string{"task.create": {"Create", "container.NewTask"}, "task.start": {"Start", "client.task.Start"}} {
		want := []string{"containerd containerd.task.v3.Task/" + calls[0], "containerd " + calls[1], "containerd " + start, "kubelet " + start, "kubelet syncPod"}
		if up := collector.Above(trace, find(name)); !slices.Equal(up, want) {
			t.Errorf("%s is below %q, want %q", name, up, want)
		}
	}
	if code := find("module.run").Attrs["process.exit.code"]; code != "7" {
		t.Errorf("module.run has the exit code %q", code)
	}
	for _, name := range []string{"task.create", "module.resolve", "module.run"} {
		for key, want := range map[string]string{
			"k8s.namespace.name": pod.Namespace, "k8s.pod.name": pod.Name, "k8s.pod.uid": string(pod.UID), "k8s.container.name": "wasm",
		} {
			if got := find(name).Attrs[key]; got != want {
				t.Errorf("%s: %s is %q, want %q", name, key, got, want)
			}
		}
	}
	// So is the pod's own container, which is a Linux program.
	sandbox := slices.IndexFunc(trace, func(s collector.Span) bool { return s.Name == "task.create" && s.ID != create.ID })
	if sandbox < 0 || !slices.Contains(collector.Above(trace, trace[sandbox]), "kubelet runtime.v1.RuntimeService/RunPodSandbox") {
		t.Errorf("no task.create of the pod's own container:\n%s", collector.Tree(trace))
	}
}

// What docs/telemetry.md would have in the cluster is what an API server takes.
func TestTheManifestsOfTheDocumentationAreTaken(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\napiVersion: v1\n")
	manifests, _, _ := strings.Cut("apiVersion: v1\n"+rest, "```")
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
	var kinds []string
	for _, manifest := range strings.Split(manifests, "---\n") {
		object, _, err := strict.Decode([]byte(manifest), nil, nil)
		if err != nil {
			t.Fatalf("%v:\n%s", err, manifest)
		}
		switch o := object.(type) {
		case *corev1.Namespace:
			kinds = append(kinds, "Namespace "+o.Name)
			_, err = api.CoreV1().Namespaces().Create(t.Context(), o, dry)
		case *appsv1.DaemonSet:
			kinds = append(kinds, "DaemonSet "+o.Name)
			// Its namespace is not there, as nothing was made.
			o.Namespace = metav1.NamespaceDefault
			_, err = api.AppsV1().DaemonSets(o.Namespace).Create(t.Context(), o, dry)
		default:
			t.Errorf("%T", o)
		}
		if err != nil {
			t.Errorf("%v:\n%s", err, manifest)
		}
	}
	if want := []string{"Namespace telemetry", "DaemonSet collector"}; !slices.Equal(kinds, want) {
		t.Errorf("manifests of %q, want %q", kinds, want)
	}
}
