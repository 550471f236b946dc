package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// wasm is a container of a module, which does what its arguments say (test/guests/probe).
func wasm(args ...string) corev1.Container {
	return corev1.Container{Name: "wasm", Image: wasmImage, ImagePullPolicy: corev1.PullNever, Args: args}
}

// linux is one of a Linux program that stays until it is told to end; it counts as
// started when it can be told. Before, the first process of a PID namespace
// ignores a SIGTERM.
func linux() corev1.Container {
	return corev1.Container{
		Name: "linux", Image: linuxImage, ImagePullPolicy: corev1.PullNever,
		Args: []string{"trap exit TERM; echo beside it >/up; cat /up; while :; do sleep 1; done"},
		Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
			Exec: command("/bin/busybox", "sh", "-c", "until [ -e /up ]; do sleep 0.1; done").Exec}},
	}
}

// create makes a pod on our node, which is deleted after the test; its name is that of
// the test.
func create(t *testing.T, spec corev1.PodSpec) *corev1.Pod {
	t.Helper()
	spec.NodeName = nodeName
	spec.RuntimeClassName = new("wazero")
	spec.AutomountServiceAccountToken = new(false)
	spec.DNSPolicy = corev1.DNSDefault
	spec.EnableServiceLinks = new(false)
	// A test that waited for it would not end in time.
	spec.TerminationGracePeriodSeconds = new(int64(600))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "pod-"}, Spec: spec}
	pod, err := pods().Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if t.Failed() {
			t.Log(describe(ctx, pod))
		}
		remove(ctx, t, pod)
	})
	return pod
}

// remove deletes a pod, with its own grace period, and waits until the kubelet says
// that it is gone.
func remove(ctx context.Context, t *testing.T, pod *corev1.Pod) {
	t.Helper()
	err := pods().Delete(ctx, pod.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
		return
	}
	err = until(ctx, "the pod is gone", func() error {
		p, err := pods().Get(ctx, pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, fmt.Errorf("still there: %+v", p.Status))
	})
	if err != nil {
		t.Error(err)
	}
}

func pods() typed.PodInterface { return api.CoreV1().Pods(metav1.NamespaceDefault) }

// await returns the pod as soon as it is as the test wants it.
func await(t *testing.T, pod *corev1.Pod, what string, ok func(*corev1.Pod) error) *corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := until(ctx, what, func() (err error) {
		if pod, err = pods().Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
			return err
		}
		return ok(pod)
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// status is that of a container of the pod.
func status(pod *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

func ready(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	return await(t, pod, "the pod is ready", func(p *corev1.Pod) error {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("%s: %s", p.Status.Phase, short(p.Status.ContainerStatuses))
	})
}

// phase waits until the pod has ended, and how.
func phase(t *testing.T, pod *corev1.Pod, want corev1.PodPhase) *corev1.Pod {
	t.Helper()
	return await(t, pod, "the pod's phase is "+string(want), func(p *corev1.Pod) error {
		if p.Status.Phase == want {
			return nil
		}
		return fmt.Errorf("%s: %s", p.Status.Phase, short(p.Status.ContainerStatuses))
	})
}

func short(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// logs waits until the container's log has the wanted lines in this order.
func logs(t *testing.T, pod *corev1.Pod, container string, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := until(ctx, "the log is there", func() error {
		data, err := pods().GetLogs(pod.Name, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
		if err != nil {
			return err
		}
		rest := string(data)
		for _, line := range want {
			_, after, found := strings.Cut(rest, line+"\n")
			if !found {
				return fmt.Errorf("no %q in %q", line, data)
			}
			rest = after
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// execute runs a command in a container, as kubectl exec does.
func execute(t *testing.T, pod *corev1.Pod, container, stdin string, command ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request := api.CoreV1().RESTClient().Get().Namespace(pod.Namespace).Resource("pods").Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdin: stdin != "", Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(config, "GET", request.URL().String())
	if err != nil {
		t.Fatal(err)
	}
	var in io.Reader
	if stdin != "" {
		in = strings.NewReader(stdin)
	}
	var out, errs bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), err
}

// describe is what there is to know of a pod.
func describe(ctx context.Context, pod *corev1.Pod) string {
	var b strings.Builder
	if p, err := pods().Get(ctx, pod.Name, metav1.GetOptions{}); err == nil {
		fmt.Fprintf(&b, "status: %s\n", short(p.Status))
	}
	events, err := api.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod.Name})
	if err == nil {
		for _, e := range events.Items {
			fmt.Fprintf(&b, "event: %s: %s (%d)\n", e.Reason, e.Message, e.Count)
		}
	}
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		if data, err := pods().GetLogs(pod.Name, &corev1.PodLogOptions{Container: c.Name}).DoRaw(ctx); err == nil {
			fmt.Fprintf(&b, "log of %s: %.2000s\n", c.Name, data)
		}
	}
	return b.String()
}

func TestAPodOfAModuleAndALinuxProgramRuns(t *testing.T) {
	t.Parallel()
	more, err := api.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "env-"}, Data: map[string]string{"MORE": "of it"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := wasm("args", "env", "cwd", "stderr", "to stderr", "idle")
	w.WorkingDir = "/srv"
	w.EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: more.Name}}}}
	w.Env = []corev1.EnvVar{
		{Name: "GREETING", Value: "hello"},
		{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
	}
	pod := ready(t, create(t, corev1.PodSpec{Containers: []corev1.Container{w, linux()}}))

	logs(t, pod, "wasm", `args: ["/probe.wasm" "args" "env" "cwd" "stderr" "to stderr" "idle"]`, "env: GREETING=hello", "env: MORE=of it", "env: POD="+pod.Name, "cwd: /srv")
	logs(t, pod, "wasm", "to stderr")
	logs(t, pod, "linux", "beside it")
	if pod.Status.PodIP == "" {
		t.Error("the pod has no address")
	}
}

func TestAnInitContainerMayBeAModule(t *testing.T) {
	t.Parallel()
	first := wasm("write", "/data/made", "by the first")
	first.Name = "first"
	second := wasm("cat", "/data/made")
	volume := corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	mount(&first, "data", "/data")
	mount(&second, "data", "/data")
	pod := create(t, corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever, Volumes: []corev1.Volume{volume},
		InitContainers: []corev1.Container{first}, Containers: []corev1.Container{second},
	})
	pod = phase(t, pod, corev1.PodSucceeded)
	for _, name := range []string{"first", "wasm"} {
		if s := status(pod, name).State.Terminated; s == nil || s.ExitCode != 0 || s.Reason != "Completed" {
			t.Errorf("%s ended with %+v", name, s)
		}
	}
	data, err := pods().GetLogs(pod.Name, &corev1.PodLogOptions{Container: "wasm"}).DoRaw(t.Context())
	if err != nil || string(data) != "by the first" {
		t.Errorf("log %q, %v", data, err)
	}
}

func mount(c *corev1.Container, volume, path string) {
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: path})
}

func TestAModuleReadsAndWritesTheVolumesOfItsPod(t *testing.T) {
	t.Parallel()
	meta := metav1.ObjectMeta{GenerateName: "volume-"}
	settings, err := api.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"colour": "blue\n", "size": "10\n"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := api.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"key": "hidden\n"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := wasm("cat", "/settings/colour", "cat", "/one/size", "cat", "/secret/key", "write", "/disk/file", "on disk\n", "write", "/memory/file", "in memory\n",
		"cat", "/pod/name", "print", "", "print", "written", "write", "/settings/colour", "red")
	mount(&w, "settings", "/settings")
	w.VolumeMounts = append(w.VolumeMounts, corev1.VolumeMount{Name: "settings", MountPath: "/one/size", SubPath: "size"})
	mount(&w, "secret", "/secret")
	mount(&w, "disk", "/disk")
	mount(&w, "memory", "/memory")
	mount(&w, "pod", "/pod")
	l := linux()
	mount(&l, "disk", "/disk")
	mount(&l, "memory", "/memory")
	pod := create(t, corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{w, l}, Volumes: []corev1.Volume{
		{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: settings.Name}}}},
		{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret.Name}}},
		{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "pod", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}}},
	}})
	logs(t, pod, "wasm", "blue", "10", "hidden", pod.Name, "written")
	for file, want := range map[string]string{"/disk/file": "on disk\n", "/memory/file": "in memory\n"} {
		if got, _, err := execute(t, pod, "linux", "", "/bin/busybox", "cat", file); err != nil || got != want {
			t.Errorf("%s is %q to the other container, %v; want %q", file, got, err, want)
		}
	}
	// The last thing it did: what the kubelet mounts read-only is.
	pod = await(t, pod, "the module has ended", func(p *corev1.Pod) error {
		if s := status(p, "wasm"); s.State.Terminated == nil {
			return errors.New(short(s))
		}
		return nil
	})
	if s := status(pod, "wasm").State.Terminated; s.ExitCode != 1 {
		t.Errorf("writing to a ConfigMap ended with %+v", s)
	}
}

func command(args ...string) corev1.ProbeHandler {
	return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: args}}
}

func TestAnExecProbeIsAModule(t *testing.T) {
	t.Parallel()
	w, l := wasm("idle"), linux()
	w.ReadinessProbe = &corev1.Probe{ProbeHandler: command("/probe.wasm", "cat", "/data/ready"), PeriodSeconds: 1, TimeoutSeconds: 60}
	w.LivenessProbe = &corev1.Probe{ProbeHandler: command("/probe.wasm", "args"), PeriodSeconds: 1, TimeoutSeconds: 60, FailureThreshold: 1}
	mount(&w, "data", "/data")
	mount(&l, "data", "/data")
	pod := create(t, corev1.PodSpec{
		Containers: []corev1.Container{w, l},
		Volumes:    []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
	})
	event(t, pod, "Unhealthy", "Readiness probe failed: error: open /data/ready")
	pod = await(t, pod, "both containers are started", func(p *corev1.Pod) error {
		if a, b := status(p, "wasm"), status(p, "linux"); a.Started == nil || !*a.Started || !b.Ready {
			return errors.New(short(p.Status.ContainerStatuses))
		}
		return nil
	})
	if status(pod, "wasm").Ready {
		t.Error("the container is ready though its probe fails")
	}
	if out, errs, err := execute(t, pod, "linux", "", "/bin/busybox", "touch", "/data/ready"); err != nil {
		t.Fatal(out, errs, err)
	}
	pod = ready(t, pod)
	if n := status(pod, "wasm").RestartCount; n != 0 {
		t.Errorf("restarted %d times by a liveness probe that succeeds", n)
	}
}

func TestAFailingLivenessProbeRestartsTheModule(t *testing.T) {
	t.Parallel()
	w := wasm("idle")
	w.LivenessProbe = &corev1.Probe{ProbeHandler: command("/probe.wasm", "exit", "3"), PeriodSeconds: 1, TimeoutSeconds: 60, FailureThreshold: 1}
	pod := create(t, corev1.PodSpec{Containers: []corev1.Container{w, linux()}})
	pod = await(t, pod, "the container was restarted", func(p *corev1.Pod) error {
		if s := status(p, "wasm"); s.RestartCount == 0 {
			return errors.New(short(s))
		}
		return nil
	})
	if s := status(pod, "wasm").LastTerminationState.Terminated; s == nil || s.ExitCode != 143 {
		t.Errorf("the container ended with %+v, want 143", s)
	}
	if n := status(pod, "linux").RestartCount; n != 0 {
		t.Errorf("the other container was restarted %d times", n)
	}
}

// event waits for an event of the pod.
func event(t *testing.T, pod *corev1.Pod, reason, message string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := until(ctx, "event "+reason, func() error {
		events, err := api.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod.Name})
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range events.Items {
			if e.Reason == reason && strings.Contains(e.Message, message) {
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("no %q among %q", message, seen)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func patch(t *testing.T, pod *corev1.Pod, data string) {
	t.Helper()
	if _, err := pods().Patch(context.WithoutCancel(t.Context()), pod.Name, types.MergePatchType, []byte(data), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}

// Its grace period is longer than the test may take.
func TestADeletedPodEndsAtOnce(t *testing.T) {
	t.Parallel()
	for image, want := range map[string]int32{wasmImage: 143, quitImage: 131} {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			w := wasm("idle")
			w.Image = image
			pod := ready(t, create(t, corev1.PodSpec{Containers: []corev1.Container{w, linux()}}))
			// Keeps the pod's status to be read.
			const finalizer = "example.com/test"
			patch(t, pod, fmt.Sprintf(`{"metadata":{"finalizers":[%q]}}`, finalizer))
			defer patch(t, pod, `{"metadata":{"finalizers":null}}`)
			if err := pods().Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			pod = await(t, pod, "the container has ended", func(p *corev1.Pod) error {
				if s := status(p, "wasm"); s.State.Terminated == nil {
					return errors.New(short(s))
				}
				return nil
			})
			if s := status(pod, "wasm").State.Terminated; s.ExitCode != want {
				t.Errorf("the container ended with %+v, want %d", s, want)
			}
		})
	}
}

func TestAGuestThatFailsIsRestartedOnFailure(t *testing.T) {
	t.Parallel()
	pod := create(t, corev1.PodSpec{RestartPolicy: corev1.RestartPolicyOnFailure, Containers: []corev1.Container{wasm("print", "once more", "exit", "3")}})
	pod = await(t, pod, "the container was restarted twice", func(p *corev1.Pod) error {
		if s := status(p, "wasm"); s.RestartCount < 2 {
			return errors.New(short(s))
		}
		return nil
	})
	if s := status(pod, "wasm").LastTerminationState.Terminated; s == nil || s.ExitCode != 3 || s.Reason != "Error" {
		t.Errorf("the container ended with %+v, want 3", s)
	}
	event(t, pod, "BackOff", "restarting failed container")
}

func TestAGuestThatFailsFailsAPodThatIsNeverRestarted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		code int32
	}{
		"exit": {[]string{"exit", "3"}, 3},
		"trap": {[]string{"trap"}, 2}, // a panic of Go's
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := phase(t, create(t, corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{wasm(test.args...)}}), corev1.PodFailed)
			if s := status(pod, "wasm").State.Terminated; s == nil || s.ExitCode != test.code || s.Reason != "Error" {
				t.Errorf("the container ended with %+v, want %d", s, test.code)
			}
		})
	}
}

func TestAGuestOverItsMemoryLimitIsOOMKilled(t *testing.T) {
	t.Parallel()
	w := wasm("fill", "/dev/shm/f", "60", "idle") // of the guest's own memory there is no more than its limit
	w.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	pod := phase(t, create(t, corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{w}}), corev1.PodFailed)
	if s := status(pod, "wasm").State.Terminated; s == nil || s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("the container ended with %+v, want 137, OOMKilled", s)
	}
}

func TestAGuestIsRefusedMemoryOverItsLimit(t *testing.T) {
	t.Parallel()
	w := wasm("grow", "400", "idle")
	w.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("200Mi")}
	pod := phase(t, create(t, corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{w}}), corev1.PodFailed)
	if s := status(pod, "wasm").State.Terminated; s == nil || s.ExitCode != 2 || s.Reason != "Error" {
		t.Errorf("the container ended with %+v, want 2, as a Go program out of memory", s)
	}
}

func TestAGuestHasTheLimitsOfItsContainer(t *testing.T) {
	t.Parallel()
	w := wasm("idle")
	w.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("200m"), corev1.ResourceMemory: resource.MustParse("128Mi")}
	// Less than its limits: it could not be resized without changing its class.
	w.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")}
	pod := ready(t, create(t, corev1.PodSpec{Containers: []corev1.Container{w}}))
	limits(t, pod, "20000")
	// More of it, while it runs.
	_, err := pods().Patch(t.Context(), pod.Name, types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"wasm","resources":{"limits":{"cpu":"400m"}}}]}}`), metav1.PatchOptions{}, "resize")
	if err != nil {
		t.Fatal(err)
	}
	pod = await(t, pod, "the container is resized", func(p *corev1.Pod) error {
		s := status(p, "wasm")
		if s.Resources == nil || s.Resources.Limits.Cpu().MilliValue() != 400 {
			return errors.New(short(p.Status))
		}
		return nil
	})
	limits(t, pod, "40000")
	if n := status(pod, "wasm").RestartCount; n != 0 {
		t.Errorf("restarted %d times to be resized", n)
	}
}

// limits looks at what the kernel has of them.
func limits(t *testing.T, pod *corev1.Pod, quota string) {
	t.Helper()
	want := map[string]string{"cpu.max": quota + " 100000", "memory.max": "134217728"}
	if !unified(t) {
		want = map[string]string{"cpu/cpu.cfs_quota_us": quota, "memory/memory.limit_in_bytes": "134217728"}
	}
	for file, want := range want {
		controller, name := filepath.Split(file)
		data, err := os.ReadFile(filepath.Join(cgroup(t, pod, "wasm", controller), name))
		if got := strings.TrimSpace(string(data)); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", file, got, err, want)
		}
	}
}

// unified tells whether cgroups are of version 2.
func unified(t *testing.T) bool {
	t.Helper()
	dirs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs) == 1
}

// processes are those in a container.
func processes(t *testing.T, pod *corev1.Pod, container string) []int {
	t.Helper()
	controller := "memory"
	if unified(t) {
		controller = ""
	}
	data, err := os.ReadFile(filepath.Join(cgroup(t, pod, container, controller), "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		t.Fatalf("no process in container %s", container)
	}
	return pids
}

// number is one that the kernel says of a process.
func number(t *testing.T, pid int, name string) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), "\n"+name+":")
	var n int
	if _, err := fmt.Sscan(after, &n); err != nil {
		t.Fatalf("%s of process %d: %v", name, pid, err)
	}
	return n
}

// cgroup is that of a container, in one hierarchy where there are many.
func cgroup(t *testing.T, pod *corev1.Pod, container, controller string) string {
	t.Helper()
	_, id, _ := strings.Cut(status(pod, container).ContainerID, "://")
	found := ""
	err := filepath.WalkDir(filepath.Join("/sys/fs/cgroup", controller, cgroupRoot(dir)), func(path string, _ os.DirEntry, err error) error {
		if filepath.Base(path) == id {
			found = path
		}
		if errors.Is(err, fs.ErrNotExist) { // another pod's, just removed
			return nil
		}
		return err
	})
	if err != nil || id == "" || found == "" {
		t.Fatalf("no cgroup of container %q: %v", id, err)
	}
	return found
}

func TestAPodMayHaveAUserNamespace(t *testing.T) {
	t.Parallel()
	w := wasm("cat", "/data/file", "print", "has read it", "write", "/disk/file", "x", "print", "has written", "idle")
	mount(&w, "data", "/data")
	mount(&w, "disk", "/disk")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "userns-"}, StringData: map[string]string{"file": "of root\n"}}
	secret, err := api.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := ready(t, create(t, corev1.PodSpec{
		HostUsers: new(false), Containers: []corev1.Container{w, linux()},
		Volumes: []corev1.Volume{
			{Name: "data", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret.Name, DefaultMode: new(int32(0o400))}}},
			{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		},
	}))
	logs(t, pod, "wasm", "of root", "has read it", "has written")
	for _, pid := range processes(t, pod, "wasm") {
		if uid := number(t, pid, "Uid"); uid < 65536 {
			t.Errorf("the guest is user %d of the machine", uid)
		}
	}
}

func TestAPodMayShareNamespaces(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spec   corev1.PodSpec
		kind   string
		shared func(*corev1.Pod) int // the process that it is shared with
	}{
		"network of the host":   {corev1.PodSpec{HostNetwork: true}, "net", func(*corev1.Pod) int { return os.Getpid() }},
		"processes of the host": {corev1.PodSpec{HostPID: true}, "pid", func(*corev1.Pod) int { return os.Getpid() }},
		"network of the pod":    {corev1.PodSpec{}, "net", func(p *corev1.Pod) int { return processes(t, p, "linux")[0] }},
		"processes of the pod":  {corev1.PodSpec{ShareProcessNamespace: new(true)}, "pid", func(p *corev1.Pod) int { return processes(t, p, "linux")[0] }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.spec.Containers = []corev1.Container{wasm("idle"), linux()}
			pod := ready(t, create(t, test.spec))
			want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", test.shared(pod), test.kind))
			if err != nil {
				t.Fatal(err)
			}
			for _, pid := range processes(t, pod, "wasm") {
				if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, test.kind)); err != nil || got != want {
					t.Errorf("process %d is in %s, %v, want %s", pid, got, err, want)
				}
			}
		})
	}
}

func TestAPodComesBackAfterItsShimWasKilled(t *testing.T) {
	t.Parallel()
	pod := ready(t, create(t, corev1.PodSpec{Containers: []corev1.Container{wasm("idle"), linux()}}))
	shim := number(t, processes(t, pod, "wasm")[0], "PPid")
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", shim)); err != nil || !strings.Contains(string(data), "containerd-shim-wazero-v1") {
		t.Fatalf("the parent of the guest is %q, %v, not the shim", data, err)
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, pod, "both containers were restarted", func(p *corev1.Pod) error {
		for _, name := range []string{"wasm", "linux"} {
			if s := status(p, name); s.RestartCount == 0 || !s.Ready {
				return errors.New(short(s))
			}
		}
		return nil
	})
}

func TestThePodSaysWhatIsWrongWithAModule(t *testing.T) {
	t.Parallel()
	missing := wasm()
	missing.Command = []string{"/missing.wasm"}
	bad := wasm()
	bad.Image = badImage
	for name, test := range map[string]struct {
		container corev1.Container
		want      []string
	}{
		"missing": {missing, []string{"/missing.wasm", "no such file"}},
		"import":  {bad, []string{"/bad.wasm", "import"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := create(t, corev1.PodSpec{Containers: []corev1.Container{test.container}})
			await(t, pod, "the container's status has the reason", func(p *corev1.Pod) error {
				s := status(p, "wasm")
				message := ""
				if s.State.Waiting != nil {
					message += s.State.Waiting.Message
				}
				if s.State.Terminated != nil {
					message += s.State.Terminated.Message
				}
				if s.LastTerminationState.Terminated != nil {
					message += s.LastTerminationState.Terminated.Message
				}
				for _, want := range test.want {
					if !strings.Contains(message, want) {
						return fmt.Errorf("no %q in %s", want, short(s))
					}
				}
				return nil
			})
		})
	}
}

func TestTheKubeletKnowsWhatAPodUses(t *testing.T) {
	t.Parallel()
	busy, big := wasm("garbage"), wasm("grow", "64", "idle")
	busy.Name, big.Name = "busy", "big"
	busy.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("200m")}
	pod := ready(t, create(t, corev1.PodSpec{Containers: []corev1.Container{busy, big}}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	type usage struct {
		Name       string
		CPU        struct{ UsageCoreNanoSeconds uint64 }
		Memory     struct{ WorkingSetBytes uint64 }
		Containers []usage
		PodRef     struct{ Name string }
	}
	err := until(ctx, "the summary has what the pod uses", func() error {
		data, err := api.CoreV1().RESTClient().Get().Resource("nodes").Name(nodeName).SubResource("proxy").Suffix("stats/summary").DoRaw(ctx)
		if err != nil {
			return err
		}
		var summary struct{ Pods []usage }
		if err := json.Unmarshal(data, &summary); err != nil {
			return err
		}
		for _, p := range summary.Pods {
			if p.PodRef.Name != pod.Name {
				continue
			}
			enough := p.CPU.UsageCoreNanoSeconds >= 1e9 && p.Memory.WorkingSetBytes >= 64<<20
			for _, c := range p.Containers {
				enough = enough && (c.Name != "busy" || c.CPU.UsageCoreNanoSeconds >= 1e9) && (c.Name != "big" || c.Memory.WorkingSetBytes >= 64<<20)
			}
			if !enough || len(p.Containers) != 2 {
				return fmt.Errorf("it is %+v", p)
			}
			return nil
		}
		return errors.New("the pod is not in it")
	})
	if err != nil {
		t.Error(err)
	}
}

func TestExecRunsAModule(t *testing.T) {
	t.Parallel()
	w, l := wasm("idle"), linux()
	w.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: command("/probe.wasm", "write", "/data/hook", "was here\n").Exec}}
	mount(&w, "data", "/data")
	mount(&l, "data", "/data")
	pod := ready(t, create(t, corev1.PodSpec{
		Containers: []corev1.Container{w, l},
		Volumes:    []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
	}))
	if got, _, err := execute(t, pod, "linux", "", "/bin/busybox", "cat", "/data/hook"); err != nil || got != "was here\n" {
		t.Errorf("the hook wrote %q, %v", got, err)
	}
	out, errs, err := execute(t, pod, "wasm", "one\ntwo\n", "/probe.wasm", "print", "out", "stderr", "err", "stdin", "exit", "3")
	if want := "out\nstdin: one\nstdin: two\nlines: 2\n"; out != want || errs != "err\n" {
		t.Errorf("it said %q and %q, want %q", out, errs, want)
	}
	if exit := (exec.CodeExitError{}); !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("it ended with %v, want 3", err)
	}
	// A program that is not in the image, which the answer names.
	if _, _, err := execute(t, pod, "wasm", "", "/bin/sh"); err == nil || !strings.Contains(err.Error(), "/bin/sh") {
		t.Errorf("a program that is not there: %v", err)
	}
	if n := status(pod, "wasm").RestartCount; n != 0 {
		t.Errorf("restarted %d times", n)
	}
}

// A hook before the end is a module as well; what it wrote is on the host.
func TestAModuleRunsBeforeThePodIsStopped(t *testing.T) {
	t.Parallel()
	w := wasm("idle")
	w.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: command("/probe.wasm", "write", "/host/hook", "was here\n").Exec}}
	mount(&w, "host", "/host")
	host := t.TempDir()
	pod := ready(t, create(t, corev1.PodSpec{
		Containers: []corev1.Container{w},
		Volumes:    []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}}},
	}))
	remove(t.Context(), t, pod)
	if data, err := os.ReadFile(filepath.Join(host, "hook")); err != nil || string(data) != "was here\n" {
		t.Errorf("the hook wrote %q, %v", data, err)
	}
}

func TestAModuleRunsInARestrictedPod(t *testing.T) {
	t.Parallel()
	w := wasm("print", "restricted", "idle")
	w.SecurityContext = &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), RunAsNonRoot: new(true), RunAsUser: new(int64(1000)), ReadOnlyRootFilesystem: new(true),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	pod := ready(t, create(t, corev1.PodSpec{Containers: []corev1.Container{w}}))
	logs(t, pod, "wasm", "restricted")
	for _, pid := range processes(t, pod, "wasm") {
		for name, want := range map[string]int{"Uid": 1000, "NoNewPrivs": 1, "CapEff": 0, "CapBnd": 0} {
			if got := number(t, pid, name); got != want {
				t.Errorf("%s of process %d is %d, want %d", name, pid, got, want)
			}
		}
	}
}
