package shim

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/shim"
	"google.golang.org/protobuf/proto"
)

func TestAStartIsToldByItsCommandLine(t *testing.T) {
	want := starter{id: "c1", namespace: "ns", address: "/c.sock"}
	debug := want
	debug.debug = true
	for _, tt := range []struct {
		name string
		args []string
		want *starter // nil: not for us
	}{
		{"containerd 1.7's", []string{"-namespace", "ns", "-address", "/c.sock", "-publish-binary", "/c", "-id", "c1", "serve"}, &want},
		{"with debugging", []string{"-namespace", "ns", "-address", "/c.sock", "-id", "c1", "-debug", "serve"}, &debug},
		{"two dashes", []string{"--namespace=ns", "--address=/c.sock", "--id=c1", "serve"}, &want},
		{"delete", []string{"-namespace", "ns", "-id", "c1", "-bundle", "/b", "delete"}, nil},
		{"the shim", []string{"-namespace", "ns", "-id", "serve"}, nil},
		{"one that is not a shim yet", []string{"-namespace", "ns", "-id", "c1", "start"}, nil},
		{"no namespace", []string{"-id", "c1", "serve"}, nil},
		{"an unknown flag", []string{"-namespace", "ns", "-id", "c1", "-x", "serve"}, nil},
		{"-info", []string{"-info"}, nil},
		{"nothing", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseStart(tt.args)
			if ok != (tt.want != nil) || ok && got != *tt.want {
				t.Errorf("got %+v, %v, want %+v", got, ok, tt.want)
			}
		})
	}
}

func TestTheTwoFormsOfParametersAreTold(t *testing.T) {
	marshal := func(m proto.Message) []byte {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	s := starter{id: "c1", namespace: "ns"}
	for _, tt := range []struct {
		name  string
		input []byte
		want  bool
	}{
		{"parameters", marshal(&bootapi.BootstrapParams{InstanceID: "c1", Namespace: "ns"}), true},
		{"of another container", marshal(&bootapi.BootstrapParams{InstanceID: "c2", Namespace: "ns"}), false},
		{"of another namespace", marshal(&bootapi.BootstrapParams{InstanceID: "c1", Namespace: "other"}), false},
		{"options", marshal(request(t, &options.Options{ShimCgroup: "/s"})), false},
		{"nothing", nil, false},
		{"garbage", []byte{0xff, 0xff}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, got := s.params(tt.input); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	t.Run("the old ones have the options", func(t *testing.T) {
		t.Setenv(ttrpcAddressEnv, "/c.ttrpc")
		p := s.oldParams(marshal(request(t, &options.Options{ShimCgroup: "/s"})))
		cgroup := shimCgroup(hostFile{options: &options.Options{}}, p)
		if p.InstanceID != "c1" || p.ContainerdTtrpcAddress != "/c.ttrpc" || cgroup != "/s" {
			t.Errorf("got %v, cgroup %q", p, cgroup)
		}
	})
}

func TestAContainerIsInTheGroupOfItsAnnotations(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"none", `{"annotations": {"a": "b"}}`, "c1"},
		{"a pod", `{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}`, "pod"},
		{"a group", `{"annotations": {"io.containerd.runc.v2.group": "g"}}`, "g"},
		{"both", `{"annotations": {"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"}}`, "g"},
		{"an empty one", `{"annotations": {"io.containerd.runc.v2.group": "", "io.kubernetes.cri.sandbox-id": "pod"}}`, "pod"},
		{"no annotations", `{}`, "c1"},
		{"malformed", `{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"`, "c1"},
		{"no file", "", "c1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.config != "" {
				if err := os.WriteFile(filepath.Join(dir, configFile), []byte(tt.config), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := groupOf(dir, "c1"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// listenAlone is listen as `start` calls it.
func listenAlone(address string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(socketPath(address)), 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockSockets(socketPath(address))
	if err != nil {
		return nil, err
	}
	defer unlock()
	return listen(address)
}

func TestOneOfManyOpensTheSocket(t *testing.T) {
	for _, left := range []string{"nothing", "a dead socket"} {
		t.Run(left, func(t *testing.T) {
			for round := range 200 {
				address := "unix://" + filepath.Join(t.TempDir(), "s", "sock")
				if left != "nothing" {
					l, err := listenAlone(address)
					if err != nil {
						t.Fatal(err)
					}
					l.SetUnlinkOnClose(false)
					l.Close()
				}
				got := make([]*net.UnixListener, 4)
				var all sync.WaitGroup
				for i := range got {
					all.Go(func() {
						l, err := listenAlone(address)
						if err != nil {
							t.Error(err)
						}
						got[i] = l
					})
				}
				all.Wait()
				got = slices.DeleteFunc(got, func(l *net.UnixListener) bool { return l == nil })
				if len(got) != 1 || !shim.CanConnect(address) {
					t.Errorf("round %d: %d opened it, want 1; it can be reached: %t", round, len(got), shim.CanConnect(address))
				}
				for _, l := range got {
					l.Close()
				}
			}
		})
	}
}

func TestASocketThatIsServedIsNotRemoved(t *testing.T) {
	address := "unix://" + filepath.Join(t.TempDir(), "sock")
	first, err := listenAlone(address)
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Second)
	if err := os.Chtimes(socketPath(address), past, past); err != nil {
		t.Fatal(err)
	}
	file, err := os.Lstat(socketPath(address))
	if err != nil {
		t.Fatal(err)
	}
	own := &ownSocket{path: socketPath(address), file: file}
	if err := removeDeadSocket(address); err != nil || !shim.CanConnect(address) {
		t.Fatalf("by delete: %v", err)
	}
	first.SetUnlinkOnClose(false)
	first.Close()
	second, err := listenAlone(address) // the next shim's
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := own.remove(); err != nil || !shim.CanConnect(address) {
		t.Fatalf("by the shim before: %v", err)
	}
	if file, err = os.Lstat(socketPath(address)); err != nil {
		t.Fatal(err)
	}
	own.file = file
	for range 2 {
		if err := own.remove(); err != nil || shim.CanConnect(address) {
			t.Errorf("its own: %v, reachable: %t", err, shim.CanConnect(address))
		}
	}
}

func TestTheAddressForDeleteIsTheOneThatContainerdHas(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	if _, err := socketAddress(ctx, dir, "c1"); err == nil {
		t.Error("no file and no namespace: got no error")
	}
	if err := writeFile(filepath.Join(dir, addressFile), []byte("unix:///a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := socketAddress(ctx, dir, "c1"); err != nil || got != "unix:///a" {
		t.Errorf("containerd 1.7: got %q, %v", got, err)
	}
	data, err := json.Marshal(&bootapi.BootstrapResult{Version: 3, Address: "unix:///b", Protocol: "ttrpc"})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(dir, "bootstrap.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := socketAddress(ctx, dir, "c1"); err != nil || got != "unix:///b" {
		t.Errorf("containerd 2: got %q, %v", got, err)
	}
}
