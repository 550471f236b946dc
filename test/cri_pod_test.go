package test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The images of the containers in pods.
const (
	probeImage   = "example.com/probe:latest"   // entry point: a module, test/guests/probe
	busyboxImage = "example.com/busybox:latest" // entry point: a Linux program
)

var (
	podsOnce sync.Once
	podsErr  error
	pods     *node.Node
)

// usePods is the node that the tests of pods share: what the kubelet talks to,
// without a kubelet. Its shims are traced, and containerd is not.
func usePods(t *testing.T) *node.Node {
	t.Helper()
	need(t)
	podsOnce.Do(func() {
		if podsErr = collect(); podsErr != nil {
			return
		}
		opts := options()
		opts.CRI, opts.ShimEnv = true, telemetryEnv()
		pods, podsErr = node.Start(context.Background(), opts)
	})
	if podsErr != nil {
		t.Fatal(podsErr)
	}
	podImages(t, pods)
	return pods
}

// podImages makes the images that the tests of pods run.
func podImages(t *testing.T, n *node.Node) {
	t.Helper()
	podImage(t, n, node.PauseImage, ocispec.ImageConfig{Entrypoint: []string{"/pause"}}, node.Program("pause", guest(t, "pause-static")))
	podImage(t, n, probeImage, ocispec.ImageConfig{Entrypoint: []string{"/app.wasm"}},
		node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("spin.wasm", guest(t, "spin.wasm")), node.Regular("trap.wasm", guest(t, "trap.wasm")),
		node.Program("hello", guest(t, "hello-static")), node.Regular("etc/motd", []byte("a file of the image\n")))
	podImage(t, n, busyboxImage, ocispec.ImageConfig{Entrypoint: []string{"/bin/busybox"}},
		node.Program("bin/busybox", guest(t, "busybox")),
		node.File{Header: tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}})
}

// podImage makes an image, once, and waits until CRI has heard of it.
func podImage(t *testing.T, n *node.Node, name string, config ocispec.ImageConfig, files ...node.File) {
	t.Helper()
	if _, err := n.Client.GetImage(n.Context(t.Context()), name); err == nil {
		return
	}
	if _, err := n.Image(t.Context(), name, config, files...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "CRI knows image "+name, func() bool {
		resp, err := n.Images().ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		return err == nil && resp.Image != nil
	})
}

// A criPod is a sandbox with its containers, whose traces are looked for when it has
// been removed at the end of the test.
type criPod struct {
	*testing.T
	n      *node.Node
	ctx    context.Context
	id     string
	config *runtimeapi.PodSandboxConfig
	names  map[string]string // of containers, by id
	before []string
}

// newPod makes what a pod is asked for with. Its containers have a network, IPC
// and UTS namespace together and a PID namespace each, as the kubelet's have.
func newPod(t *testing.T) *criPod {
	t.Helper()
	return newPodOn(t, usePods(t))
}

// newPodOn makes it on a node of the test's own, which has the images.
func newPodOn(t *testing.T, n *node.Node) *criPod {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	p := &criPod{T: t, n: n, ctx: ctx, names: map[string]string{}, before: podTraces(t, n)}
	name := strings.ToLower(newID(t))
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Hostname:     "pod-host",
		LogDirectory: filepath.Join(n.Dir, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.PodCgroup() + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	t.Cleanup(func() {
		p.remove()
		cancel()
	})
	return p
}

// in is the pod for a subtest, which fails on its own.
func (p *criPod) in(t *testing.T) *criPod {
	q := *p
	q.T = t
	return &q
}

func (p *criPod) namespaces() *runtimeapi.NamespaceOption {
	return p.config.Linux.SecurityContext.NamespaceOptions
}

// up starts the pod on a runtime handler.
func (p *criPod) up(handler string) *criPod {
	p.Helper()
	resp, err := p.n.Pods().RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		p.Fatalf("run the pod: %v", err)
	}
	p.id = resp.PodSandboxId
	return p
}

// runPod starts an ordinary pod.
func runPod(t *testing.T) *criPod {
	t.Helper()
	return newPod(t).up("wazero")
}

// remove removes the pod, as the kubelet would, and looks for what is left of it.
func (p *criPod) remove() {
	p.Helper()
	ids := []string{p.id}
	for id := range p.names {
		ids = append(ids, id)
	}
	if p.id != "" {
		if _, err := p.n.Pods().StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			p.Errorf("stop the pod: %v", err)
		}
		if _, err := p.n.Pods().RemovePodSandbox(p.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			p.Errorf("remove the pod: %v", err)
		}
		p.id = ""
	}
	// The kubelet's to remove, as it is the kubelet that makes it.
	for _, dir := range cgroupDirs(p.config.Linux.CgroupParent) {
		_ = os.Remove(dir) // what keeps it is found below
	}
	nothingMore(p.T, p.before, func() []string {
		found := podTraces(p.T, p.n)
		// What runc keeps, in a place that this node does not have to itself.
		for _, id := range ids {
			if state := filepath.Join("/run/containerd/runc", p.n.Namespace(), id); id != "" && exists(state) {
				found = append(found, state)
			}
		}
		return found
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// An option changes what a container is asked for with.
type option func(*runtimeapi.ContainerConfig)

// create makes a container. With no other command, the image's entry point gets
// the arguments.
func (p *criPod) create(image string, args []string, opts ...option) string {
	p.Helper()
	name := fmt.Sprintf("c%d", len(p.names))
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Args:     args,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.containerNamespaces()},
		},
	}
	for _, o := range opts {
		o(config)
	}
	resp, err := p.n.Pods().CreateContainer(p.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		p.Fatalf("create %q: %v", args, err)
	}
	p.names[resp.ContainerId] = name
	return resp.ContainerId
}

// containerNamespaces are the pod's, in a message of their own.
func (p *criPod) containerNamespaces() *runtimeapi.NamespaceOption {
	o := p.namespaces()
	return &runtimeapi.NamespaceOption{Network: o.Network, Pid: o.Pid, Ipc: o.Ipc, UsernsOptions: o.UsernsOptions}
}

func (p *criPod) start(id string) error {
	_, err := p.n.Pods().StartContainer(p.ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

// run makes a container and starts it.
func (p *criPod) run(image string, args []string, opts ...option) string {
	p.Helper()
	id := p.create(image, args, opts...)
	if err := p.start(id); err != nil {
		p.Fatalf("start %q: %v", args, err)
	}
	return id
}

// stop stops a container; a grace of 0 is a kill.
func (p *criPod) stop(id string, grace int64) {
	p.Helper()
	if _, err := p.n.Pods().StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		p.Errorf("stop: %v", err)
	}
}

func (p *criPod) removeContainer(id string) {
	p.Helper()
	if _, err := p.n.Pods().RemoveContainer(p.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		p.Errorf("remove: %v", err)
	}
}

func (p *criPod) status(id string) *runtimeapi.ContainerStatus {
	p.Helper()
	resp, err := p.n.Pods().ContainerStatus(p.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		p.Fatalf("status: %v", err)
	}
	return resp.Status
}

// exited waits until a container has ended.
func (p *criPod) exited(id string) *runtimeapi.ContainerStatus {
	p.Helper()
	eventually(p.T, "container "+p.names[id]+" ends", func() bool {
		return p.status(id).State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return p.status(id)
}

// running waits until a container has written something, and so runs for certain.
func (p *criPod) running(id, output string) {
	p.Helper()
	eventually(p.T, fmt.Sprintf("container %s writes %q", p.names[id], output), func() bool {
		return strings.Contains(p.output(id, "stdout"), output)
	})
}

// finished runs a container to its end, which must be a good one, and returns
// what it printed.
func (p *criPod) finished(image string, args []string, opts ...option) string {
	p.Helper()
	id := p.run(image, args, opts...)
	if s := p.exited(id); s.ExitCode != 0 {
		p.Errorf("%q: exit code %d: %s: %s", args, s.ExitCode, s.Message, p.log(id))
	}
	return p.output(id, "stdout")
}

// inspect reads what containerd says of a container beside its status: "pid" and
// "runtimeSpec", of a sandbox too.
func (p *criPod) inspect(id string, v any) {
	p.Helper()
	var info map[string]string
	if id == p.id {
		resp, err := p.n.Pods().PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
		if err != nil {
			p.Fatalf("status: %v", err)
		}
		info = resp.Info
	} else {
		resp, err := p.n.Pods().ContainerStatus(p.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			p.Fatalf("status: %v", err)
		}
		info = resp.Info
	}
	if err := json.Unmarshal([]byte(info["info"]), v); err != nil {
		p.Fatalf("%v: %q", err, info)
	}
}

// pid is that of a container's first process, of the pod's own for its id.
func (p *criPod) pid(id string) int {
	p.Helper()
	var info struct{ Pid int }
	p.inspect(id, &info)
	if info.Pid == 0 {
		p.Fatalf("container %s has no process", p.names[id])
	}
	return info.Pid
}

// namespace is a namespace of a container's first process, as the kernel names it.
func (p *criPod) namespace(id, kind string) string {
	p.Helper()
	return namespace(p.T, p.pid(id), kind)
}

func namespace(t *testing.T, pid any, kind string) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%v/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func (p *criPod) exec(id string, cmd ...string) (*runtimeapi.ExecSyncResponse, error) {
	return p.n.Pods().ExecSync(p.ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
}

// log is the log file that containerd writes for a container.
func (p *criPod) log(id string) string {
	p.Helper()
	data, err := os.ReadFile(filepath.Join(p.config.LogDirectory, p.names[id]+".log"))
	if err != nil && !os.IsNotExist(err) {
		p.Fatal(err)
	}
	return string(data)
}

// A logLine is one of a log in CRI's format.
type logLine struct {
	at                time.Time
	stream, tag, text string
}

func (p *criPod) logLines(id string) (lines []logLine) {
	p.Helper()
	whole, _, _ := cutLast(p.log(id), "\n") // the last line may still be written
	for line := range strings.SplitSeq(whole, "\n") {
		if line == "" {
			continue
		}
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			p.Fatalf("log line %q", line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			p.Fatalf("log line %q: %v", line, err)
		}
		lines = append(lines, logLine{at, f[1], f[2], f[3]})
	}
	return lines
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// output puts together what a container wrote to a stream.
func (p *criPod) output(id, stream string) string {
	p.Helper()
	var b strings.Builder
	for _, l := range p.logLines(id) {
		if l.stream != stream {
			continue
		}
		b.WriteString(l.text)
		if l.tag == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// criShims are the shims of a node, which work in their bundles: the names of their
// programs, by pid.
func criShims(t *testing.T, n *node.Node) map[int]string {
	t.Helper()
	found := map[int]string{}
	for pid, cmdline := range processes(t) {
		name := filepath.Base(cmdline[0])
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err == nil && strings.HasPrefix(cwd, n.Dir+"/state/") && strings.HasPrefix(name, "containerd-shim-") {
			found[pid] = name
		}
	}
	return found
}

// processes are the command lines of all processes, by pid. Zombies have none.
func processes(t *testing.T) map[int][]string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int][]string{}
	for _, f := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(f); err == nil && len(data) > 0 {
			all[pid] = strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		}
	}
	return all
}

// cgroupDirs are the directories of a cgroup, one in each hierarchy that has it.
func cgroupDirs(path string) []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*" + path)
	v2, _ := filepath.Glob("/sys/fs/cgroup" + path)
	return append(v1, v2...)
}

// podTraces are what pods could leave on their node and in containerd's records.
func podTraces(t *testing.T, n *node.Node) []string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], n.Dir+"/") {
			found = append(found, "mount "+f[4])
		}
	}
	for pid, cmdline := range processes(t) {
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err == nil && (bytes.Contains(cgroup, []byte(n.PodCgroup()+"/")) || strings.HasPrefix(cwd, n.Dir+"/state/")) {
			found = append(found, fmt.Sprintf("process %d %s", pid, strings.Join(cmdline, " ")))
		}
	}
	for _, dir := range cgroupDirs(n.PodCgroup()) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != dir {
				found = append(found, "cgroup "+path)
			}
			return nil // gone in between
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The sockets of shims, bundles, what CRI keeps of pods and containers (network
	// namespaces among it), ends of virtual cables, addresses, results of CNI.
	for _, pattern := range []string{
		n.Dir + "/s/*", n.Dir + "/state/io.containerd.runtime.v2.task/*/*",
		n.Dir + "/*/io.containerd.grpc.v1.cri/*/*", n.Dir + "/*/io.containerd.cri.v1.runtime/*/*",
		"/sys/class/net/" + filepath.Base(n.Dir) + "/brif/*",
		n.Dir + "/ipam/*/10.*", "/var/lib/cni/results/" + filepath.Base(n.Dir) + "-*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, paths...)
	}
	ctx := n.Context(context.Background())
	containers, err := n.Client.Containers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		found = append(found, "container "+c.ID())
	}
	all, err := n.Client.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		found = append(found, "lease "+l.ID)
	}
	err = n.Client.SnapshotService("").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive {
			found = append(found, "snapshot "+info.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}
