package test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The fields of a specification that no other file is about, seen from the host or
// from inside. Which there are, and which have no meaning for a guest, is in
// internal/shim: TestEveryFieldOfTheSpecificationIsHonouredOrSaidNotToBe.

// catImage has a small module that reads and writes files.
func catImage(t *testing.T) []node.File {
	t.Helper()
	return []node.File{node.Regular("app.wasm", guest(t, "cat-c.wasm")), node.Regular("etc/motd", []byte("of the image\n"))}
}

func process(change func(*specs.Process)) oci.SpecOpts {
	return specOf(func(s *oci.Spec) { change(s.Process) })
}

// idleCat is a container whose guest waits, once it has done what its arguments say.
func idleCat(t *testing.T, n *node.Node, opts ...oci.SpecOpts) *box {
	t.Helper()
	b := container(t, n, image(t, n, "spec", catImage(t)...), append([]oci.SpecOpts{args("/app.wasm", "idle")}, opts...)...)
	b.mustCreate(t)
	b.mustStart(t)
	return b
}

// idleExec is an exec that waits.
func (b *box) idleExec(t *testing.T, change func(*specs.Process), args ...string) *execution {
	t.Helper()
	e, err := b.exec(t, newID(t), change, append([]string{"/app.wasm"}, append(args, "idle")...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestTheNamesOfAContainerAreItsOwn(t *testing.T) {
	n := useNode(t)
	b := idleCat(t, n, specOf(func(s *oci.Spec) { s.Hostname, s.Domainname = "wasmhost", "wasm.example" }))
	for _, pid := range []uint32{b.task.Pid(), b.idleExec(t, nil).Pid()} {
		out, err := nsenter(t.Context(), pid, "cat", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname")
		if err != nil || out != "wasmhost\nwasm.example\n" {
			t.Errorf("process %d: %q, %v", pid, out, err)
		}
	}
}

func TestACgroupNamespaceOfItsOwnHasTheCgroupForItsRoot(t *testing.T) {
	n := useNode(t)
	path := "/" + node.Namespace + "/of/its/own-" + newID(t)
	b := idleCat(t, n, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}), oci.WithCgroup(path))
	pid := b.task.Pid()
	if own := namespaceOf(t, uint32(os.Getpid()), "cgroup"); own == namespaceOf(t, pid, "cgroup") {
		t.Error("the cgroup namespace is the host's")
	}
	if own := procFile(t, pid, "cgroup"); !strings.Contains(own, ":"+path+"\n") {
		t.Errorf("from the host:\n%s\nwant %s", own, path)
	}
}

func TestATimeNamespaceHasItsOffsets(t *testing.T) {
	n := useNode(t)
	const far = 1_000_000
	in := func(namespace specs.LinuxNamespace, offsets map[string]specs.LinuxTimeOffset) oci.SpecOpts {
		return oci.Compose(oci.WithLinuxNamespace(namespace), specOf(func(s *oci.Spec) { s.Linux.TimeOffsets = offsets }))
	}
	b := idleCat(t, n, in(specs.LinuxNamespace{Type: specs.TimeNamespace}, map[string]specs.LinuxTimeOffset{"monotonic": {Secs: far, Nanosecs: 5}, "boottime": {Secs: 2 * far}}))
	e := b.idleExec(t, nil)
	for _, pid := range []uint32{b.task.Pid(), e.Pid()} {
		if namespaceOf(t, pid, "time") == namespaceOf(t, uint32(os.Getpid()), "time") {
			t.Errorf("process %d: its time namespace is the host's", pid)
		}
		got := strings.Fields(procFile(t, pid, "timens_offsets"))
		if want := []string{"monotonic", strconv.Itoa(far), "5", "boottime", strconv.Itoa(2 * far), "0"}; !slices.Equal(got, want) {
			t.Errorf("process %d: %v, want %v", pid, got, want)
		}
	}
	t.Run("which a guest sees", func(t *testing.T) {
		img := app(t, n, "clock.wasm")
		var here unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &here); err != nil {
			t.Fatal(err)
		}
		// It gives the monotonic clock's seconds, divided by a million, as its status.
		_, status := run(t, n, img, args("/app.wasm"), in(specs.LinuxNamespace{Type: specs.TimeNamespace}, map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 77*far - here.Sec}}))
		if status != 77 {
			t.Errorf("%d millions of seconds, want 77", status)
		}
	})
	for name, opt := range map[string]oci.SpecOpts{
		"time namespace: cannot be joined": in(specs.LinuxNamespace{Type: specs.TimeNamespace, Path: "/proc/1/ns/time"}, nil),
		"timeOffsets: not without":         specOf(func(s *oci.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1}} }),
		"timeOffsets: clock realtime":      in(specs.LinuxNamespace{Type: specs.TimeNamespace}, map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}),
		"timeOffsets: ":                    in(specs.LinuxNamespace{Type: specs.TimeNamespace}, map[string]specs.LinuxTimeOffset{"monotonic": {Secs: -1 << 62}}),
	} {
		refused(t, n, opt, name)
	}
}

// refused has a Create fail for what opt asks, and leave nothing.
func refused(t *testing.T, n *node.Node, opt oci.SpecOpts, want ...string) {
	t.Helper()
	t.Run(want[0], func(t *testing.T) {
		before := traces(t, n)
		b := container(t, n, image(t, n, "spec", catImage(t)...), args("/app.wasm", "/etc/motd"), opt)
		wantError(t, b.create(), errdefs.ErrInvalidArgument, want...)
		b.remove()
		leaves(t, n, before)
	})
}

func TestAProcessHasItsUserGroupsAndUmask(t *testing.T) {
	n := useNode(t)
	umask := uint32(0o227)
	user := func(p *specs.Process) {
		p.User = specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{4, 24}, Umask: &umask}
	}
	scratch := oci.WithMounts([]specs.Mount{{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777"}}})
	b := idleCat(t, n, process(user), scratch, args("/app.wasm", "+/scratch/first", "idle"))
	other := uint32(0)
	e := b.idleExec(t, func(p *specs.Process) {
		p.User = specs.User{UID: 1001, GID: 101, AdditionalGids: []uint32{5}, Umask: &other}
	}, "+/scratch/second")
	for _, tt := range []struct {
		pid                       uint32
		uid, gid, groups, created string
		mode                      os.FileMode // 0600 less the umask: wazero makes files no more public
		umask                     string
	}{
		{b.task.Pid(), "1000", "100", "4 24", "first", 0o400, "0227"},
		{e.Pid(), "1001", "101", "5", "second", 0o600, "0000"},
	} {
		for field, want := range map[string]string{"Uid": tt.uid, "Gid": tt.gid} {
			if got := strings.Fields(statusField(t, tt.pid, field)); !slices.Equal(got, []string{want, want, want, want}) {
				t.Errorf("%s: %v, want %s", field, got, want)
			}
		}
		if got := statusField(t, tt.pid, "Umask"); got != tt.umask {
			t.Errorf("umask %s, want %s", got, tt.umask)
		}
		if got := statusField(t, tt.pid, "Groups"); got != tt.groups {
			t.Errorf("groups %q, want %q", got, tt.groups)
		}
		file := fmt.Sprintf("/proc/%d/root/scratch/%s", b.task.Pid(), tt.created)
		var info os.FileInfo
		eventually(t, "file of the guest", func() (ok bool) { info, _ = os.Stat(file); return info != nil && info.Size() > 0 })
		if info.Mode() != tt.mode {
			t.Errorf("%s: %v, want %v", tt.created, info.Mode(), tt.mode)
		}
	}
}

func TestACapabilityIsHadWhereAllSetsHaveIt(t *testing.T) {
	n := useNode(t)
	all := []string{"CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SYS_ADMIN", "CAP_NET_RAW"}
	const dacOverride, fowner = 1 << unix.CAP_DAC_OVERRIDE, 1 << unix.CAP_FOWNER
	without := func(set []string) []string {
		return slices.DeleteFunc(slices.Clone(set), func(c string) bool { return c == "CAP_FOWNER" })
	}
	full := specs.LinuxCapabilities{Bounding: all, Effective: all, Inheritable: all, Permitted: all, Ambient: all}
	change := func(f func(*specs.LinuxCapabilities)) *specs.LinuxCapabilities {
		c := full
		f(&c)
		return &c
	}
	for name, tt := range map[string]struct {
		uid  uint32
		caps *specs.LinuxCapabilities
		want uint64
	}{
		"root with all":             {0, &full, dacOverride | fowner},
		"root, not bounding":        {0, change(func(c *specs.LinuxCapabilities) { c.Bounding = without(all) }), dacOverride},
		"root, not effective":       {0, change(func(c *specs.LinuxCapabilities) { c.Effective = without(all) }), dacOverride},
		"root, not permitted":       {0, change(func(c *specs.LinuxCapabilities) { c.Permitted = without(all) }), dacOverride},
		"another with all":          {1000, &full, dacOverride | fowner},
		"another, not inheritable":  {1000, change(func(c *specs.LinuxCapabilities) { c.Inheritable = without(all) }), dacOverride},
		"another, nothing ambient":  {1000, change(func(c *specs.LinuxCapabilities) { c.Ambient = nil }), 0},
		"none":                      {0, nil, 0},
		"one that there is nowhere": {0, change(func(c *specs.LinuxCapabilities) { c.Effective = append(c.Effective, "CAP_LUCK") }), dacOverride | fowner},
	} {
		t.Run(name, func(t *testing.T) {
			set := func(p *specs.Process) { p.User.UID, p.Capabilities = tt.uid, tt.caps }
			b := idleCat(t, n, process(set))
			for _, field := range []string{"CapEff", "CapPrm", "CapAmb", "CapInh"} {
				if got, want := statusField(t, b.task.Pid(), field), fmt.Sprintf("%016x", tt.want); got != want {
					t.Errorf("%s: %s, want %s", field, got, want)
				}
			}
		})
	}
}

func TestNoProcessGainsPrivileges(t *testing.T) {
	n := useNode(t)
	b := idleCat(t, n, process(func(p *specs.Process) { p.NoNewPrivileges = false }))
	for _, pid := range []uint32{b.task.Pid(), b.idleExec(t, nil).Pid()} {
		if got := statusField(t, pid, "NoNewPrivs"); got != "1" {
			t.Errorf("process %d: %s", pid, got)
		}
	}
}

func TestEveryResourceLimitIsSet(t *testing.T) {
	n := useNode(t)
	// As /proc/<pid>/limits calls them. Each lower than what is there, and enough.
	limits := map[string]struct {
		name       string
		soft, hard uint64
	}{
		"RLIMIT_CORE": {"Max core file size", 0, 1}, "RLIMIT_CPU": {"Max cpu time", 100, 200}, "RLIMIT_DATA": {"Max data size", 1 << 40, 1 << 41},
		"RLIMIT_FSIZE": {"Max file size", 1 << 20, 1 << 21}, "RLIMIT_LOCKS": {"Max file locks", 5, 6}, "RLIMIT_MEMLOCK": {"Max locked memory", 4096, 8192},
		"RLIMIT_MSGQUEUE": {"Max msgqueue size", 100, 200}, "RLIMIT_NICE": {"Max nice priority", 0, 0}, "RLIMIT_NOFILE": {"Max open files", 77, 88},
		"RLIMIT_NPROC": {"Max processes", 1000, 2000}, "RLIMIT_RSS": {"Max resident set", 1 << 40, 1 << 41}, "RLIMIT_RTPRIO": {"Max realtime priority", 0, 0},
		"RLIMIT_RTTIME": {"Max realtime timeout", 1 << 20, 1 << 21}, "RLIMIT_SIGPENDING": {"Max pending signals", 10, 20}, "RLIMIT_STACK": {"Max stack size", 1 << 20, 1 << 21},
		"RLIMIT_AS": {"Max address space", 1 << 44, 1 << 45},
	}
	var spec []specs.POSIXRlimit
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		spec = append(spec, specs.POSIXRlimit{Type: name, Soft: limits[name].soft, Hard: limits[name].hard})
	}
	b := idleCat(t, n, process(func(p *specs.Process) { p.Rlimits = spec }))
	none := b.idleExec(t, func(p *specs.Process) { p.Rlimits = nil })
	for who, pid := range map[string]uint32{"the first": b.task.Pid(), "an exec": b.idleExec(t, nil).Pid(), "an exec that says none": none.Pid()} {
		lines := strings.Split(procFile(t, pid, "limits"), "\n")
		for limit, want := range limits {
			i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, want.name) })
			if i < 0 {
				t.Errorf("%s: no %s", who, want.name)
				continue
			}
			got := strings.Fields(strings.TrimPrefix(lines[i], want.name))[:2]
			if !slices.Equal(got, []string{fmt.Sprint(want.soft), fmt.Sprint(want.hard)}) {
				t.Errorf("%s: %s is %v, want %d %d", who, limit, got, want.soft, want.hard)
			}
		}
	}
}

// ioPriority is that of a thread, as ioprio_get(2) has it.
func ioPriority(tid int) int {
	const process = 1
	r, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, process, uintptr(tid), 0)
	if errno != 0 {
		return -1
	}
	return int(r)
}

func TestEveryThreadIsScheduledAsAsked(t *testing.T) {
	n := useNode(t)
	const class = 13
	b := idleCat(t, n, process(func(p *specs.Process) {
		p.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7}
		p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "1"}
	}))
	own := b.idleExec(t, func(p *specs.Process) {
		p.Scheduler = &specs.Scheduler{Policy: specs.SchedIdle}
		p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
		p.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"}
	})
	inherited := b.idleExec(t, func(p *specs.Process) { p.Scheduler, p.IOPriority, p.ExecCPUAffinity = nil, nil, nil })
	plain := idleCat(t, n)
	cpus := func(tid int) string {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
		_, list, _ := strings.Cut(string(data), "\nCpus_allowed_list:\t")
		list, _, _ = strings.Cut(list, "\n")
		return list
	}
	for name, tt := range map[string]struct {
		pid    uint32
		policy uint32
		nice   int32
		io     int
		cpus   string
	}{
		"the first":         {b.task.Pid(), unix.SCHED_BATCH, 7, 2<<class | 6, cpus(os.Getpid())}, // the affinity is an exec's
		"an exec":           {inherited.Pid(), unix.SCHED_BATCH, 7, 2<<class | 6, "1"},
		"an exec's own":     {own.Pid(), unix.SCHED_IDLE, 0, 3 << class, "0"},
		"one that asks not": {plain.task.Pid(), unix.SCHED_NORMAL, 0, ioPriority(os.Getpid()), cpus(os.Getpid())},
	} {
		t.Run(name, func(t *testing.T) {
			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", tt.pid))
			if err != nil || len(threads) < 2 {
				t.Fatal(threads, err)
			}
			for _, thread := range threads {
				tid, err := strconv.Atoi(filepath.Base(thread))
				if err != nil {
					t.Fatal(err)
				}
				attr, err := unix.SchedGetAttr(tid, 0)
				if err != nil || attr.Policy != tt.policy || attr.Nice != tt.nice {
					t.Errorf("thread %d: %+v, %v, want policy %d nice %d", tid, attr, err, tt.policy, tt.nice)
				}
				if got := ioPriority(tid); got != tt.io {
					t.Errorf("thread %d: I/O priority %#x, want %#x", tid, got, tt.io)
				}
				if got := cpus(tid); got != tt.cpus {
					t.Errorf("thread %d: processors %s, want %s", tid, got, tt.cpus)
				}
			}
		})
	}
	refused(t, n, process(func(p *specs.Process) { p.Scheduler = &specs.Scheduler{Policy: specs.SchedDeadline} }), "scheduler: SCHED_DEADLINE")
	refused(t, n, process(func(p *specs.Process) { p.Scheduler = &specs.Scheduler{Policy: "SCHED_LUCK"} }), `scheduler: policy "SCHED_LUCK"`)
	refused(t, n, process(func(p *specs.Process) { p.Scheduler = &specs.Scheduler{Policy: specs.SchedFIFO, Priority: 1000} }), "scheduler SCHED_FIFO")
	refused(t, n, process(func(p *specs.Process) { p.IOPriority = &specs.LinuxIOPriority{Class: "LUCK"} }), `ioPriority: class "LUCK"`)
	_, err := b.exec(t, "bad", func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{Final: "1-0"} }, "/app.wasm")
	wantError(t, err, errdefs.ErrInvalidArgument, "exec bad", "execCPUAffinity 1-0")
}

func TestAMemoryPolicyIsThatOfEveryProcess(t *testing.T) {
	n := useNode(t)
	b := idleCat(t, n, specOf(func(s *oci.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"} }))
	for _, pid := range []uint32{b.task.Pid(), b.idleExec(t, nil).Pid()} {
		if got := procFile(t, pid, "numa_maps"); !strings.Contains(got, " bind:0 ") {
			t.Errorf("process %d:\n%s\nwant bind:0", pid, got)
		}
	}
	if got := procFile(t, idleCat(t, n).task.Pid(), "numa_maps"); strings.Contains(got, "bind") {
		t.Errorf("one that asks for none:\n%s", got)
	}
	refused(t, n, specOf(func(s *oci.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_LUCK"} }), `memoryPolicy: mode "MPOL_LUCK"`)
	refused(t, n, specOf(func(s *oci.Spec) {
		s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "1000"}
	}), "memoryPolicy MPOL_BIND")
}

func TestWhatNoWasmContainerCanHaveIsRefused(t *testing.T) {
	n := useNode(t)
	refused(t, n, specOf(func(s *oci.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"} }), "linux.intelRdt")
	refused(t, n, specOf(func(s *oci.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth7": {}} }), "linux.netDevices: eth7")
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		return // it could be had
	}
	refused(t, n, process(func(p *specs.Process) { p.SelinuxLabel = "u:r:t:s0" }), "SELinux label u:r:t:s0")
}

func TestWhatHasNoMeaningForAGuestIsIgnored(t *testing.T) {
	n := useNode(t)
	b, status := run(t, n, image(t, n, "spec", catImage(t)...), args("/app.wasm", "/etc/motd"), specOf(func(s *oci.Spec) {
		s.Process.CommandLine, s.Process.User.Username = "cmd.exe", "ContainerUser"
		s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		s.Linux.RootfsPropagation = "rshared"
		s.Solaris, s.Windows, s.VM = &specs.Solaris{}, &specs.Windows{}, &specs.VM{}
	}))
	if status != 0 || b.stdout.String() != "of the image\n" {
		t.Errorf("%d, %q %q", status, b.stdout, b.stderr)
	}
}
