package kubernetes

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

const (
	nodeName = "node"
	nodeIP   = "10.94.0.1"
	// token is the password of whoever talks to the API server.
	token = "token"
	// patience is how long anything may take, on a slow and busy machine.
	patience = 3 * time.Minute
)

// The images of the pods, by what they hold.
const (
	wasmImage  = "example.com/wasm:latest"
	quitImage  = "example.com/quit:latest"
	badImage   = "example.com/bad:latest"
	linuxImage = "example.com/linux:latest"
)

// The cluster that all tests share.
var (
	machine *node.Node
	spans   *collector.Collector // of all that is traced: the kubelet, containerd, the shims
	api     *kubernetes.Clientset
	config  *rest.Config
	dir     string
)

// inside starts the cluster, runs the tests and asks whether anything is left of
// their pods.
func inside(m *testing.M, folder string) (_ int, err error) {
	dir = folder
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer func() {
		if machine != nil {
			err = errors.Join(err, machine.Close())
		}
		if spans != nil {
			spans.Close()
		}
	}()
	if err := start(ctx); err != nil {
		return 1, fmt.Errorf("start the cluster: %w", err)
	}
	code := m.Run()
	ctx, cancel = context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = until(ctx, "nothing is left of deleted pods", left)
	if strings.Contains(machine.Log(), "DATA RACE") {
		err = errors.Join(err, fmt.Errorf("the shim has a data race:\n%s", machine.Log()))
	}
	return code, err
}

// left says what there is of pods: processes of shims, which are named after what
// they run, mounts of their bundles, and cgroups.
func left() error {
	var found []string
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, name := range lines {
		if data, _ := os.ReadFile(name); bytes.Contains(data, []byte("containerd-shim")) {
			found = append(found, string(bytes.ReplaceAll(data, []byte{0}, []byte{' '})))
		}
	}
	// What CRI itself has mounted for a pod waits for the kubelet's next clean-up.
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(machine.Dir, "state", "io.containerd.runtime.v2.task")))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		found = append(found, m.Mountpoint)
	}
	tops, err := hierarchies()
	if err != nil {
		return err
	}
	for _, top := range tops {
		for _, pattern := range []string{"kubepods/pod*", "kubepods/*/pod*"} {
			cgroups, err := filepath.Glob(filepath.Join(top, cgroupRoot(dir), pattern))
			if err != nil {
				return err
			}
			found = append(found, cgroups...)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("%q", found)
	}
	return nil
}

func bin(elem ...string) string {
	path, err := filepath.Abs(filepath.Join(append([]string{"..", "..", "bin"}, elem...)...))
	if err != nil {
		panic(err)
	}
	return path
}

func start(ctx context.Context) error {
	shim := bin()
	if dir := os.Getenv("TEST_SHIM"); dir != "" {
		shim = dir
	}
	var err error
	if spans, err = collector.Start(); err != nil {
		return err
	}
	env := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + spans.Addr(), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=200"}
	if machine, err = node.Start(ctx, node.Options{Bin: bin(), Shim: shim, CRI: true, Env: env}); err != nil {
		return err
	}
	if err := images(ctx); err != nil {
		return err
	}
	if err := makeCgroups(cgroupRoot(dir)); err != nil {
		return err
	}
	if err := apiServer(ctx); err != nil {
		return err
	}
	return kubelet(ctx)
}

// images makes what the pods run.
func images(ctx context.Context) error {
	for _, i := range []struct {
		name   string
		config ocispec.ImageConfig
		files  map[string]string // by their guests
	}{
		{node.PauseImage, ocispec.ImageConfig{Entrypoint: []string{"/pause"}}, map[string]string{"pause": "pause-static"}},
		{linuxImage, ocispec.ImageConfig{Entrypoint: []string{"/bin/busybox", "sh", "-c"}}, map[string]string{"bin/busybox": "busybox"}},
		{wasmImage, ocispec.ImageConfig{Entrypoint: []string{"/probe.wasm"}}, map[string]string{"probe.wasm": "probe.wasm", "srv/hello.wasm": "hello.wasm"}},
		{quitImage, ocispec.ImageConfig{Entrypoint: []string{"/probe.wasm"}, StopSignal: "SIGQUIT"}, map[string]string{"probe.wasm": "probe.wasm"}},
		{badImage, ocispec.ImageConfig{Entrypoint: []string{"/bad.wasm"}}, map[string]string{"bad.wasm": "badimport.wasm"}},
	} {
		var files []node.File
		for name, guest := range i.files {
			data, err := os.ReadFile(bin("guests", guest))
			if err != nil {
				return err
			}
			files = append(files, node.Program(name, data))
		}
		if _, err := machine.Image(ctx, i.name, i.config, files...); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	return nil
}

// run starts a program; it ends with the namespaces.
func run(name string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(bin(name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	return cmd.Start()
}

// apiServer starts etcd and the API server, and makes what controllers would make.
func apiServer(ctx context.Context) error {
	if err := run("etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync"); err != nil {
		return err
	}
	tokens, key := filepath.Join(dir, "tokens"), filepath.Join(dir, "key.pem")
	if err := os.WriteFile(tokens, []byte(token+",admin,admin\n"), 0o600); err != nil {
		return err
	}
	if err := writeKey(key); err != nil {
		return err
	}
	err := run("kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address="+nodeIP, "--advertise-address="+nodeIP, "--endpoint-reconciler-type=none",
		"--kubelet-preferred-address-types=InternalIP",
		"--cert-dir="+dir, "--service-cluster-ip-range=10.95.0.0/16",
		"--token-auth-file="+tokens, "--authorization-mode=AlwaysAllow", "--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		// There is no controller to make the accounts that pods would get.
		"--disable-admission-plugins=ServiceAccount")
	if err != nil {
		return err
	}
	config = &rest.Config{
		Host:            "https://" + nodeIP + ":6443",
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(dir, "apiserver.crt")},
		QPS:             -1,
	}
	err = until(ctx, "the API server is ready", func() error {
		if api, err = kubernetes.NewForConfig(config); err != nil { // while there is no certificate yet
			return err
		}
		_, err := api.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail("kube-apiserver"))
	}
	class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "runc"}, Handler: "runc"}
	if _, err := api.NodeV1().RuntimeClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("runtime class runc: %w", err)
	}
	return apply(ctx, "runtimeclass.yaml")
}

// writeKey writes a new private key.
func writeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// kubelet starts the kubelet, which makes this machine a node.
func kubelet(ctx context.Context) error {
	kubeconfig := filepath.Join(dir, "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"test": {Server: config.Host, CertificateAuthority: config.CAFile}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"test": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"test": {Cluster: "test", AuthInfo: "test"}},
		CurrentContext: "test",
	}, kubeconfig)
	if err != nil {
		return err
	}
	never := map[string]string{}
	for _, signal := range []string{"memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"} {
		never[signal] = "0%"
	}
	data, err := json.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + machine.Address(),
		"cgroupRoot":               cgroupRoot(dir), "cgroupDriver": "cgroupfs", "failCgroupV1": false,
		"failSwapOn": false, "evictionHard": never, "imageGCHighThresholdPercent": 100,
		"tracing": map[string]any{"endpoint": spans.Addr(), "samplingRatePerMillion": 1_000_000},
		// Nobody else is on this network.
		"authentication":         map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":          map[string]any{"mode": "AlwaysAllow"},
		"makeIPTablesUtilChains": false, "resolvConf": "",
		"volumePluginDir":  filepath.Join(dir, "plugins"),
		"crashLoopBackOff": map[string]any{"maxContainerRestartPeriod": "5s"},
	})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "kubelet.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	err = run("kubelet", "--config="+file, "--kubeconfig="+kubeconfig, "--root-dir="+filepath.Join(dir, "kubelet"),
		"--hostname-override="+nodeName, "--node-ip="+nodeIP, "--v=2")
	if err != nil {
		return err
	}
	err = until(ctx, "the node is ready", func() error {
		n, err := api.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return errors.New(c.Message)
			} else if c.Type == corev1.NodeReady {
				return nil
			}
		}
		return errors.New("no condition yet")
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail("kubelet"))
	}
	// Its label is what the class asks of a node.
	return install(ctx, "install")
}

// until waits until it is so, and otherwise says why it is not.
func until(ctx context.Context, what string, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not so in time: %s: %w", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tail is the end of a program's log.
func tail(name string) []byte {
	data, err := os.ReadFile(filepath.Join(dir, name+".log"))
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-40):], nil)
}
