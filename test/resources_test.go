package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

const mib = 1 << 20

// figures are what Stats says, of either version of cgroups.
type figures struct {
	cpu                            time.Duration
	memory, anonymous, memoryLimit uint64
	workingSet                     uint64 // as the kubelet has it
	pids, pidsLimit                uint64
	oomKills                       uint64
	oomKillsAreCounted             bool
}

func stats(t *testing.T, b *box) figures {
	t.Helper()
	m, err := b.task.Metrics(b.ctx)
	if err != nil {
		t.Fatalf("stats: %v", err)
	}
	v, err := typeurl.UnmarshalAny(m.Data)
	if err != nil {
		t.Fatal(err)
	}
	switch m := v.(type) {
	case *stats1.Metrics:
		return figures{
			cpu:    time.Duration(m.CPU.Usage.Total),
			memory: m.Memory.Usage.Usage, anonymous: m.Memory.TotalRSS, memoryLimit: m.Memory.Usage.Limit,
			workingSet: m.Memory.Usage.Usage - m.Memory.TotalInactiveFile,
			pids:       m.Pids.Current, pidsLimit: m.Pids.Limit,
		}
	case *stats2.Metrics:
		return figures{
			cpu:    time.Duration(m.CPU.UsageUsec) * time.Microsecond,
			memory: m.Memory.Usage, anonymous: m.Memory.Anon, memoryLimit: m.Memory.UsageLimit,
			workingSet: m.Memory.Usage - m.Memory.InactiveFile,
			pids:       m.Pids.Current, pidsLimit: m.Pids.Limit,
			oomKills: m.MemoryEvents.OomKill, oomKillsAreCounted: true,
		}
	}
	t.Fatalf("stats of type %T", v)
	return figures{}
}

// cpuTime is what the kernel says of a process, apart from cgroups; to 10 ms.
func cpuTime(t *testing.T, pid uint32) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// Behind the name: utime and stime are the 14th and the 15th in all.
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	var ticks int
	for _, n := range f[11:13] {
		v, err := strconv.Atoi(string(n))
		if err != nil {
			t.Fatal(err)
		}
		ticks += v
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// anonymous is the private memory of a process, in bytes.
func anonymous(t *testing.T, pid uint32) uint64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "RssAnon:")
	n, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// output waits until the guest has said something.
func (b *box) says(t *testing.T, what string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the guest says %q", what), func() bool { return strings.Contains(b.stdout.String(), what) })
}

func status(t *testing.T, b *box) containerd.ProcessStatus {
	t.Helper()
	s, err := b.task.Status(b.ctx)
	if err != nil {
		t.Fatalf("state: %v", err)
	}
	return s.Status
}

func TestContract18PidsAreThoseOfTheContainerAndNeverNone(t *testing.T) {
	n := useNode(t)
	other := container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "0"))
	other.mustCreate(t)
	b := container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "0"))
	b.mustCreate(t)
	pids := func() (all []uint32) {
		t.Helper()
		infos, err := b.task.Pids(b.ctx)
		if err != nil {
			t.Fatalf("pids: %v", err)
		}
		for _, p := range infos {
			all = append(all, p.Pid)
		}
		return all
	}
	if got := pids(); !slices.Equal(got, []uint32{b.task.Pid()}) {
		t.Errorf("created: %v, want %d", got, b.task.Pid())
	}
	b.mustStart(t)
	if got := pids(); !slices.Equal(got, []uint32{b.task.Pid()}) {
		t.Errorf("running: %v, want %d", got, b.task.Pid())
	}
	if err := b.task.Pause(b.ctx); err != nil {
		t.Fatal(err)
	}
	if got := pids(); !slices.Equal(got, []uint32{b.task.Pid()}) {
		t.Errorf("paused: %v, want %d", got, b.task.Pid())
	}
	// While it dies they are asked for again and again.
	if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		got := pids()
		if status(t, b) == containerd.Stopped {
			break // it may have been stopped before pids were asked for
		}
		if len(got) == 0 {
			t.Fatal("no pids, but the task lives")
		}
	}
	b.exit(t)
	// Until Delete: containerd, at its own start, takes a task without a process for
	// one that has leaked.
	if got := pids(); !slices.Equal(got, []uint32{b.task.Pid()}) {
		t.Errorf("stopped: %v, want %d", got, b.task.Pid())
	}
}

func TestContract21StatsAreTrueFromCreateToDelete(t *testing.T) {
	n := useNode(t)
	t.Run("processor time", func(t *testing.T) {
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		created := stats(t, b)
		b.mustStart(t)
		agree := func(when string) figures {
			t.Helper()
			// Ticks: each of two numbers is rounded down.
			least := cpuTime(t, b.task.Pid())
			got := stats(t, b)
			most := cpuTime(t, b.task.Pid()) + 50*time.Millisecond
			if got.cpu < least || got.cpu > most {
				t.Errorf("%s: %v of processor time, want %v to %v", when, got.cpu, least, most)
			}
			return got
		}
		eventually(t, "1 s of processor time", func() bool { return stats(t, b).cpu >= created.cpu+time.Second })
		agree("running")
		if err := b.task.Pause(b.ctx); err != nil {
			t.Fatal(err)
		}
		agree("paused")
		before := agree("paused").cpu
		if err := b.task.Resume(b.ctx); err != nil {
			t.Fatal(err)
		}
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		b.exit(t)
		stopped := stats(t, b)
		if stopped.cpu < before || stopped.pids != 0 {
			t.Errorf("stopped: %v of processor time and %d processes, want %v at least, and none", stopped.cpu, stopped.pids, before)
		}
		task := b.task
		b.delete(t)
		if _, err := task.Metrics(b.ctx); !errdefs.IsNotFound(err) {
			t.Errorf("deleted: %v, want not found", err)
		}
	})
	t.Run("memory", func(t *testing.T) {
		b := container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "stdin", "50"))
		b.mustCreate(t, true)
		if got := stats(t, b); got.memory == 0 {
			t.Error("created: no memory")
		}
		b.mustStart(t)
		before := stats(t, b)
		if before.anonymous >= 50*mib {
			t.Errorf("%d MiB before there was anything to hold", before.anonymous/mib)
		}
		b.stdin.Close()
		b.closeStdin(t)
		b.says(t, "holding: 50")
		// The kernel adds up what its processors counted every now and then.
		eventually(t, "50 MiB", func() bool { return stats(t, b).anonymous >= 50*mib })
		eventually(t, "as much as the process has", func() bool {
			got, want := stats(t, b), anonymous(t, b.task.Pid())
			return got.anonymous+4*mib > want && got.anonymous < want+4*mib && got.memory >= got.anonymous &&
				got.workingSet >= 50*mib && got.workingSet <= got.memory
		})
	})
	t.Run("limits", func(t *testing.T) {
		b := container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "0"), oci.WithMemoryLimit(300*mib), oci.WithPidsLimit(77))
		b.mustCreate(t)
		for _, when := range []string{"created", "running"} {
			if got := stats(t, b); got.memoryLimit != 300*mib || got.pidsLimit != 77 || got.pids == 0 || got.pids > 77 {
				t.Errorf("%s: %+v, want a memory limit of 300 MiB and some of 77 processes", when, got)
			}
			if when == "created" {
				b.mustStart(t)
			}
		}
	})
}

func TestContract22AnOOMKillIsAnEventBeforeTheExit(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	b := container(t, n, app(t, n, "limits-c.wasm"), args("/app.wasm", "file", "/dev/shm/f", "60"), oci.WithMemoryLimit(50*mib), oci.WithMemorySwap(50*mib))
	b.mustCreate(t)
	b.mustStart(t)
	if got := b.exit(t); got != 137 {
		t.Errorf("status %d, want 137", got)
	}
	if got := stats(t, b); got.oomKillsAreCounted && got.oomKills != 1 {
		t.Errorf("%d OOM kills, want 1", got.oomKills)
	}
	b.delete(t)
	want := []string{"create", "start", "*events.TaskOOM", "exit", "delete"}
	if got := names(rec.of(b.ID(), len(want))); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	// One that is killed otherwise has no such event.
	b = container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "0"), oci.WithMemoryLimit(100*mib))
	b.mustCreate(t)
	b.mustStart(t)
	if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	b.delete(t)
	want = []string{"create", "start", "exit", "delete"}
	if got := names(rec.of(b.ID(), len(want))); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestContract23APausedGuestStandsStill(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	wantError(t, b.task.Pause(b.ctx), errdefs.ErrFailedPrecondition, "created")
	b.mustStart(t)
	wantError(t, b.task.Resume(b.ctx), errdefs.ErrFailedPrecondition, b.ID())
	pid := b.task.Pid()
	eventually(t, "it runs", func() bool { return cpuTime(t, pid) > 100*time.Millisecond })

	if err := b.task.Pause(b.ctx); err != nil {
		t.Fatal(err)
	}
	if got := status(t, b); got != containerd.Paused {
		t.Errorf("state %s, want paused", got)
	}
	before := cpuTime(t, pid)
	time.Sleep(300 * time.Millisecond) // thirty ticks, were it to run
	if got := cpuTime(t, pid); got != before {
		t.Errorf("%v of processor time while it was paused", got-before)
	}
	wantError(t, b.task.Pause(b.ctx), errdefs.ErrFailedPrecondition, "paused")

	if err := b.task.Resume(b.ctx); err != nil {
		t.Fatal(err)
	}
	if got := status(t, b); got != containerd.Running {
		t.Errorf("state %s, want running", got)
	}
	eventually(t, "it goes on", func() bool { return cpuTime(t, pid) > before+100*time.Millisecond })

	if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	wantError(t, b.task.Pause(b.ctx), errdefs.ErrFailedPrecondition, "stopped")
	wantError(t, b.task.Resume(b.ctx), errdefs.ErrFailedPrecondition, b.ID())
	b.delete(t)
	want := []string{"create", "start", "*events.TaskPaused", "*events.TaskResumed", "exit", "delete"}
	if got := names(rec.of(b.ID(), len(want))); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestContract23APausedGuestCanBeKilled(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	rec := record(t, n)
	for sig, want := range map[syscall.Signal]uint32{syscall.SIGTERM: 143, syscall.SIGKILL: 137} {
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
		b.mustCreate(t)
		b.mustStart(t)
		if err := b.task.Pause(b.ctx); err != nil {
			t.Fatal(err)
		}
		wantError(t, func() error { _, err := b.task.Delete(b.ctx); return err }(), errdefs.ErrFailedPrecondition)
		if err := b.task.Kill(b.ctx, sig); err != nil {
			t.Fatal(err)
		}
		if got := b.exit(t); got != want {
			t.Errorf("signal %d: status %d, want %d", sig, got, want)
		}
		if got := status(t, b); got != containerd.Stopped {
			t.Errorf("state %s, want stopped", got)
		}
		b.delete(t)
		want := []string{"create", "start", "*events.TaskPaused", "exit", "delete"}
		if got := names(rec.of(b.ID(), len(want))); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
		b.remove()
	}
	leaves(t, n, before)
}

func TestContract23AnExitWhilePausedIsAnExit(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"))
	b.mustCreate(t)
	b.mustStart(t)
	if err := b.task.Pause(b.ctx); err != nil {
		t.Fatal(err)
	}
	// By somebody else; on version 1 that has to wait until it goes on.
	if err := syscall.Kill(int(b.task.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !cgroups.IsCgroup2UnifiedMode() {
		if got := status(t, b); got != containerd.Paused {
			t.Errorf("state %s, want paused", got)
		}
		if err := b.task.Resume(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.exit(t); got != 137 {
		t.Errorf("status %d, want 137", got)
	}
	if got := status(t, b); got != containerd.Stopped {
		t.Errorf("state %s, want stopped", got)
	}
	wantError(t, b.task.Resume(b.ctx), errdefs.ErrFailedPrecondition)
	b.delete(t)
	b.remove()
	leaves(t, n, before)
}

func update(b *box, r *specs.LinuxResources) error {
	return b.task.Update(b.ctx, containerd.WithResources(r))
}

func ptr[T any](v T) *T { return &v }

func TestContract23AnUpdateIsInForce(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	b := container(t, n, app(t, n, "limits-c.wasm"), args("/app.wasm", "later", "/dev/shm/f", "60"), oci.WithPidsLimit(77))
	b.mustCreate(t, true)
	if err := update(b, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](100 * mib), Swap: ptr[int64](100 * mib)}}); err != nil {
		t.Fatalf("created: %v", err)
	}
	b.mustStart(t)
	if got := stats(t, b); got.memoryLimit != 100*mib || got.pidsLimit != 77 {
		t.Errorf("%+v, want a memory limit of 100 MiB and the old one of processes, 77", got)
	}
	if err := update(b, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr[int64](50 * mib), Swap: ptr[int64](50 * mib)},
		Pids:   &specs.LinuxPids{Limit: ptr[int64](88)}, CPU: &specs.LinuxCPU{Shares: ptr[uint64](512)},
	}); err != nil {
		t.Fatalf("running: %v", err)
	}
	if got := stats(t, b); got.memoryLimit != 50*mib || got.pidsLimit != 88 {
		t.Errorf("%+v, want a memory limit of 50 MiB and one of 88 processes", got)
	}
	file, want := filepath.Join("/sys/fs/cgroup/cpu", node.Namespace, b.ID(), "cpu.shares"), "512"
	if cgroups.IsCgroup2UnifiedMode() {
		file = filepath.Join("/sys/fs/cgroup", node.Namespace, b.ID(), "cpu.weight")
		want = fmt.Sprint(cgroups.ConvertCPUSharesToCgroupV2Value(512))
	}
	if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("%s: %s, %v: want %s", file, got, err, want)
	}
	// And now it takes 60 MiB, where nothing but the kernel is in its way: in a tmpfs.
	b.stdin.Close()
	b.closeStdin(t)
	if got := b.exit(t); got != 137 {
		t.Errorf("status %d, want 137", got)
	}
	if got := names(rec.of(b.ID(), 4)); !slices.Contains(got, "*events.TaskOOM") {
		t.Errorf("events %v: none of an OOM kill", got)
	}
	wantError(t, update(b, &specs.LinuxResources{}), errdefs.ErrFailedPrecondition, b.ID())
}

func TestContract23AnUpdateWithNonsenseIsRefusedAndChangesNothing(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "0"), oci.WithMemoryLimit(300*mib), oci.WithPidsLimit(77))
	b.mustCreate(t)
	b.mustStart(t)
	const resources = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
	for _, tt := range []struct{ kind, value, says string }{
		{resources, "nonsense", "invalid character"},
		{resources, `{"pids":{"limit":88},"cpu":{"shares":"many"}}`, "cpu.shares"},
		{resources, `{"pids":{"limit":88},"cpu":{"cpus":"4000"}}`, "cpuset.cpus"},
		{resources, `{"memory":{"limit":104857600},"pids":{"limit":88},"cpu":{"quota":1,"period":1}}`, "cpu"},
		{"example.com/Nonsense", "{}", "example.com/Nonsense"},
	} {
		_, err := n.Client.TaskService().Update(b.ctx, &tasks.UpdateTaskRequest{
			ContainerID: b.ID(), Resources: &anypb.Any{TypeUrl: tt.kind, Value: []byte(tt.value)},
		})
		wantError(t, errgrpc.ToNative(err), errdefs.ErrInvalidArgument, tt.says)
		if got := stats(t, b); got.memoryLimit != 300*mib || got.pidsLimit != 77 {
			t.Errorf("after %s: %+v, want the old limits", tt.value, got)
		}
	}
	if got := status(t, b); got != containerd.Running {
		t.Errorf("state %s, want running", got)
	}
}
