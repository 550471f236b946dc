package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PauseImage is the image of a pod's own container. Whoever runs pods makes it.
const PauseImage = "example.com/pause:latest"

// The plugins below Bin/cni connect pods by a bridge of the node's own, which is
// no gateway: that would have them forward packets on the whole machine. The one
// place outside the node's folder that is written to is libcni's cache, which
// cannot be moved and which has nothing of a pod that was stopped.
var criConfig = template.Must(template.New("").Parse(`
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "` + PauseImage + `"
[plugins."io.containerd.cri.v1.runtime"]
  cdi_spec_dirs = []
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  stats_collect_period = "100ms"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{{.Bin}}/cni"]
    conf_dir = "{{.Dir}}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes]
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.wazero]
      runtime_type = "` + Runtime + `"
      pod_annotations = ["` + Runtime + `/*"]
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.wazero-path]
      runtime_type = "` + Runtime + `"
      runtime_path = "{{.Shim}}"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.wazero-v1]
      runtime_type = "{{.Shim}}"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.wazero-options]
      runtime_type = "` + Runtime + `"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.wazero-options.options]
        SystemdCgroup = false
`))

var cniConfig = template.Must(template.New("").Parse(`{
  "cniVersion": "1.0.0",
  "name": "{{.Name}}",
  "plugins": [{
    "type": "bridge",
    "bridge": "{{.Name}}",
    "ipam": {"type": "host-local", "dataDir": "{{.Dir}}/ipam", "ranges": [[{"subnet": "10.93.0.0/16"}]]}
  }]
}
`))

// name is one that no other node has: of its bridge, its network, and the cgroup
// that is the parent of its pods'.
func (n *Node) name() string { return filepath.Base(n.Dir) }

// PodCgroup is the parent of the cgroups of pods, which only this node has. Those
// of single pods below it are for their maker to remove, as they are the kubelet's.
func (n *Node) PodCgroup() string { return "/" + n.name() }

// prepareCRI writes what the CRI plugins read beside containerd's configuration.
func (n *Node) prepareCRI() error {
	if err := os.Mkdir(n.path("cni"), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(n.path("cni", "10-bridge.conflist"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return cniConfig.Execute(f, map[string]string{"Dir": n.Dir, "Name": n.name()})
}

// Pods is the node's CRI service.
func (n *Node) Pods() runtimeapi.RuntimeServiceClient {
	return runtimeapi.NewRuntimeServiceClient(n.Client.Conn().(grpc.ClientConnInterface))
}

// Images is the node's CRI service for images.
func (n *Node) Images() runtimeapi.ImageServiceClient {
	return runtimeapi.NewImageServiceClient(n.Client.Conn().(grpc.ClientConnInterface))
}

// criReady asks whether the CRI service, which starts after containerd, serves.
func (n *Node) criReady(ctx context.Context) error {
	status, err := n.Pods().Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range status.GetStatus().GetConditions() {
		if !c.Status && (c.Type == runtimeapi.RuntimeReady || c.Type == runtimeapi.NetworkReady) {
			return fmt.Errorf("%s is false: %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	return nil
}

// closeCRI removes what pods share outside the node's folder.
func (n *Node) closeCRI() error {
	errs := []error{n.removeBridge()}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		dirs, err := filepath.Glob(pattern + n.PodCgroup())
		errs = append(errs, err)
		for _, dir := range dirs {
			errs = append(errs, os.Remove(dir))
		}
	}
	return errors.Join(errs...)
}

// removeBridge removes the bridge that the first pod had made, if there was one.
func (n *Node) removeBridge() error {
	if _, err := os.Stat("/sys/class/net/" + n.name()); err != nil {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq(n.name())
	if err != nil {
		return fmt.Errorf("bridge %s: %w", n.name(), err)
	}
	ifreq.SetUint16(0) // down: else it is busy
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifreq); err != nil {
		return fmt.Errorf("set bridge %s down: %w", n.name(), err)
	}
	name := append([]byte(n.name()), 0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCBRDELBR, uintptr(unsafe.Pointer(&name[0]))); errno != 0 {
		return fmt.Errorf("remove bridge %s: %w", n.name(), errno)
	}
	return nil
}
