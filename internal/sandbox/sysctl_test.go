package sandbox

import (
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestASysctlBelongsToANamespaceOrIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		namespace  specs.LinuxNamespaceType
	}{
		{"net.ipv4.ip_forward", "net/ipv4/ip_forward", specs.NetworkNamespace},
		{"net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding", specs.NetworkNamespace},
		{"net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding", specs.NetworkNamespace},
		{"kernel.shmmax", "kernel/shmmax", specs.IPCNamespace},
		{"fs.mqueue.msg_max", "fs/mqueue/msg_max", specs.IPCNamespace},
		{"kernel.domainname", "kernel/domainname", specs.UTSNamespace},
		{"kernel.hostname", "", ""}, // the specification has a field for it
		{"kernel.panic", "", ""},
		{"vm.swappiness", "", ""},
		{"net", "", ""},
		{"net/../kernel/panic", "", ""},
		{"/proc/sys/net/ipv4/ip_forward", "", ""},
		{"", "", ""},
	} {
		file, namespace, err := sysctlFile(tt.name)
		if file != tt.file || namespace != tt.namespace || (err == nil) != (tt.file != "") {
			t.Errorf("%q: got %q, %q, %v, want %q, %q", tt.name, file, namespace, err, tt.file, tt.namespace)
		}
	}
}

func TestASysctlIsNeverSetForTheHost(t *testing.T) {
	for _, name := range []string{"net.ipv4.ip_forward", "kernel.shmmni", "kernel.domainname"} {
		if err := setSysctls(os.Getpid(), map[string]string{name: "1"}); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}
