package test

import (
	"archive/tar"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// What the kubelet asks of containerd, asked without a kubelet: pods on the
// runtime handler of this shim, with their own network, and Linux programs in them
// beside modules.

var (
	idleModule = []string{"print", "up", "idle"}
	idleLinux  = []string{"sh", "-c", "echo up; exec sleep 100000"}
)

func TestContract30APodOfModulesAndLinuxProgramsHasOneShim(t *testing.T) {
	p := newPod(t)
	before := criShims(t, p.n)
	p.up("wazero")
	one := p.run(probeImage, idleModule)
	sidecar := p.run(busyboxImage, idleLinux)
	two := p.run(probeImage, idleModule)
	var more []string
	for pid, exe := range criShims(t, p.n) {
		if before[pid] == "" {
			more = append(more, exe)
		}
	}
	if !slices.Equal(more, []string{"containerd-shim-wazero-v1"}) {
		t.Errorf("shims of the pod: %v", more)
	}
	for _, id := range []string{one, sidecar, two} {
		p.running(id, "up\n")
		s := p.status(id)
		if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.CreatedAt == 0 || s.StartedAt < s.CreatedAt || s.FinishedAt != 0 {
			t.Errorf("status %v", s)
		}
	}
	resp, err := p.n.Pods().PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || resp.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || resp.Status.RuntimeHandler != "wazero" || resp.Status.Network.GetIp() == "" {
		t.Errorf("the pod: %v, %v", resp, err)
	}
}

func TestContract30ThePodsContainersEndInAnyOrder(t *testing.T) {
	// m and n are modules, l is a Linux program, p the pod's own container.
	for _, order := range []string{"mln", "lmn", "nml", "pmln", "lpnm"} {
		t.Run(order, func(t *testing.T) {
			p := runPod(t)
			ids := map[rune]string{'m': p.run(probeImage, idleModule), 'l': p.run(busyboxImage, idleLinux), 'n': p.run(probeImage, idleModule), 'p': p.id}
			for i, c := range order {
				if c == 'p' {
					if err := syscall.Kill(p.pid(p.id), syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					eventually(t, "the pod is not ready", func() bool { return p.state() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY })
				} else {
					p.stop(ids[c], 0)
					if s := p.status(ids[c]); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
						t.Errorf("%c: %v", c, s)
					}
					p.removeContainer(ids[c])
				}
				// The others live on.
				for _, other := range order[i+1:] {
					if other == 'p' {
						continue
					}
					if s := p.status(ids[other]); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || !alive(p.pid(ids[other])) {
						t.Errorf("after the end of %c, %c: %v", c, other, s)
					}
				}
			}
		})
	}
	t.Run("all at once, by stopping the pod", func(t *testing.T) {
		p := runPod(t)
		ids := []string{p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux), p.run(probeImage, idleModule)}
		if _, err := p.n.Pods().StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			if s := p.status(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
				t.Errorf("%v", s)
			}
		}
	})
	t.Run("each may be followed by another", func(t *testing.T) {
		p := runPod(t)
		for range 3 {
			if got := p.finished(probeImage, []string{"print", "x"}); got != "x\n" {
				t.Errorf("printed %q", got)
			}
			if got := p.finished(busyboxImage, []string{"echo", "y"}); got != "y\n" {
				t.Errorf("printed %q", got)
			}
		}
	})
}

// state is the pod's.
func (p *criPod) state() runtimeapi.PodSandboxState {
	p.Helper()
	resp, err := p.n.Pods().PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		p.Fatal(err)
	}
	return resp.Status.State
}

func TestContract27AndTheLogOfAContainerIsWhole(t *testing.T) {
	p := runPod(t)
	began := time.Now()
	id := p.run(probeImage, []string{"print", "one", "stderr", "two", "print", "three"})
	p.exited(id)
	var got []string
	for _, l := range p.logLines(id) {
		got = append(got, l.stream+" "+l.tag+" "+l.text)
		if l.at.Before(began) || l.at.After(time.Now()) {
			t.Errorf("line of %v, which is not between %v and now", l.at, began)
		}
	}
	slices.Sort(got) // the streams are not in step with each other
	if want := []string{"stderr F two", "stdout F one", "stdout F three"}; !slices.Equal(got, want) {
		t.Errorf("log %q, want %q", got, want)
	}
	t.Run("when the kubelet has turned it over", func(t *testing.T) {
		p := p.in(t)
		id := p.run(probeImage, []string{"tick", "20ms"})
		p.running(id, "tick: 3\n")
		log := filepath.Join(p.config.LogDirectory, p.names[id]+".log")
		if err := os.Rename(log, log+".1"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.n.Pods().ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		p.running(id, "tick: ")
		old, err := os.ReadFile(log + ".1")
		if err != nil {
			t.Fatal(err)
		}
		last := strings.Count(string(old), "tick: ") - 1
		if first := p.logLines(id)[0].text; first != fmt.Sprintf("tick: %d", last+1) {
			t.Errorf("after tick %d, %q", last, first)
		}
		p.stop(id, 0)
	})
	t.Run("to the last byte of a burst", func(t *testing.T) {
		p := p.in(t)
		const n = 8 << 20
		id := p.run(probeImage, []string{"burst", strconv.Itoa(n)})
		p.exited(id)
		size := 0
		for _, l := range p.logLines(id) {
			size += len(l.text)
		}
		if size != n {
			t.Errorf("%d bytes, want %d", size, n)
		}
	})
}

func TestContract03TheStatusOfAContainer(t *testing.T) {
	p := runPod(t)
	memory := func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 64 << 20 }
	for _, c := range []struct {
		name   string
		args   []string
		code   int32
		reason string
		opts   []option
	}{
		{"it did well", []string{"exit", "0"}, 0, "Completed", nil},
		{"it failed", []string{"exit", "3"}, 3, "Error", nil},
		{"it trapped", []string{"trap"}, 2, "Error", nil}, // a panic of Go
		{"it used too much memory", []string{"fill", "/dev/shm/f", "60"}, 137, "OOMKilled", []option{memory}},
		{"it was refused more memory", []string{"grow", "256"}, 2, "Error", []option{memory}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			id := p.run(probeImage, c.args, c.opts...)
			s := p.exited(id)
			if s.ExitCode != c.code || s.Reason != c.reason {
				t.Errorf("exit code %d, %s, want %d, %s", s.ExitCode, s.Reason, c.code, c.reason)
			}
			// CRI says that it was started at when it had the answer: it may have ended by then.
			if s.FinishedAt < s.CreatedAt || s.StartedAt < s.CreatedAt || time.Since(time.Unix(0, s.CreatedAt)) > time.Minute {
				t.Errorf("created at %d, started at %d, finished at %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
			}
		})
	}
}

func TestContract21TheFiguresOfAPodAreTrue(t *testing.T) {
	p := runPod(t)
	const second, held = uint64(time.Second), uint64(50 << 20)
	spinning := p.run(probeImage, nil, command("/spin.wasm"))
	holding := p.run(probeImage, []string{"grow", "50", "print", "up", "idle"})
	sidecar := p.run(busyboxImage, idleLinux)
	p.running(holding, "up\n")
	var stats *runtimeapi.ContainerStats
	eventually(t, "a guest that spins is seen to have burnt a second", func() bool {
		resp, err := p.n.Pods().ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: spinning})
		if err != nil {
			t.Fatal(err)
		}
		stats = resp.Stats
		return stats.Cpu.GetUsageCoreNanoSeconds().GetValue() > second
	})
	resp, err := p.n.Pods().ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: holding})
	if err != nil {
		t.Fatal(err)
	}
	if m := resp.Stats.Memory; m.GetUsageBytes().GetValue() < held || m.GetWorkingSetBytes().GetValue() < held || m.GetRssBytes().GetValue() < held {
		t.Errorf("a guest that holds 50 MiB: %v", m)
	}
	if used := resp.Stats.Cpu.GetUsageCoreNanoSeconds().GetValue(); used == 0 || used > second {
		t.Errorf("a guest that is idle used %v", time.Duration(used))
	}
	// containerd has what it was told last, of one that has just been started nothing.
	for _, id := range []string{spinning, holding, sidecar} {
		eventually(t, p.names[id]+" has figures in the list", func() bool {
			s := p.stats()[id]
			return s != nil && s.Memory.GetUsageBytes().GetValue() > 0 && s.Cpu.GetUsageCoreNanoSeconds().GetValue() > 0
		})
	}
	// A rate, which containerd makes from what it is told now and then.
	eventually(t, "the rate of the one that spins is seen", func() bool {
		return p.stats()[spinning].Cpu.GetUsageNanoCores().GetValue() > second/20
	})
	check := func(t *testing.T, s *runtimeapi.PodSandboxStats) {
		t.Helper()
		if used := s.Linux.Cpu.GetUsageCoreNanoSeconds().GetValue(); used < second {
			t.Errorf("its processor time is %v", time.Duration(used))
		}
		if m := s.Linux.Memory.GetUsageBytes().GetValue(); m < held {
			t.Errorf("its memory is %d", m)
		}
		if n := s.Linux.Process.GetProcessCount().GetValue(); n < 3 || len(s.Linux.Containers) != 3 {
			t.Errorf("%d processes, %d containers", n, len(s.Linux.Containers))
		}
	}
	t.Run("one pod", func(t *testing.T) {
		p := p.in(t)
		resp, err := p.n.Pods().PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		check(t, resp.Stats)
	})
	t.Run("in the list of pods", func(t *testing.T) {
		p := p.in(t)
		resp, err := p.n.Pods().ListPodSandboxStats(p.ctx, &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil || len(resp.Stats) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		check(t, resp.Stats[0])
	})
}

// stats are the figures of the pod's containers, by their ids.
func (p *criPod) stats() map[string]*runtimeapi.ContainerStats {
	p.Helper()
	list, err := p.n.Pods().ListContainerStats(p.ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: p.id}})
	if err != nil {
		p.Fatal(err)
	}
	all := map[string]*runtimeapi.ContainerStats{}
	for _, s := range list.Stats {
		all[s.Attributes.Id] = s
	}
	return all
}

// command replaces the image's entry point.
func command(args ...string) option {
	return func(c *runtimeapi.ContainerConfig) { c.Command = args }
}

func TestContract29ExecInAPod(t *testing.T) {
	p := runPod(t)
	module := p.run(probeImage, idleModule, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "SET", Value: []byte("by the container")}}
		c.WorkingDir = "/etc"
	})
	sidecar := p.run(busyboxImage, idleLinux)
	for _, c := range []struct {
		name           string
		in             string
		cmd            []string
		code           int32
		stdout, stderr string
	}{
		{"a module", module, []string{"/app.wasm", "args", "stderr", "e"}, 0, "args: [\"/app.wasm\" \"args\" \"stderr\" \"e\"]\n", "e\n"},
		{"with the container's files, environment and directory", module, []string{"/app.wasm", "cwd", "cat", "motd", "env"}, 0,
			"cwd: /etc\na file of the image\nenv: HOSTNAME=pod-host\nenv: PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nenv: PWD=/etc\nenv: SET=by the container\n", ""},
		{"one that fails", module, []string{"/app.wasm", "stderr", "no", "exit", "7"}, 7, "", "no\n"},
		{"one that traps", module, []string{"/trap.wasm"}, 134, "", "/trap.wasm: wasm error: unreachable\nwasm stack trace:\n\t.$0()\n\t.$1()\n"},
		{"much output", module, []string{"/app.wasm", "burst", "1000000"}, 0, strings.Repeat("0", 1000000), ""},
		{"in the sidecar", sidecar, []string{"/bin/busybox", "sh", "-c", "hostname; echo e >&2; exit 5"}, 5, "pod-host\n", "e\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			resp, err := p.exec(c.in, c.cmd...)
			if err != nil {
				t.Fatal(err)
			}
			if resp.ExitCode != c.code || string(resp.Stdout) != c.stdout || string(resp.Stderr) != c.stderr {
				t.Errorf("exit code %d, stdout %.300q, stderr %.300q", resp.ExitCode, resp.Stdout, resp.Stderr)
			}
		})
	}
	t.Run("a Linux program in the module's container is refused", func(t *testing.T) {
		p := p.in(t)
		_, err := p.exec(module, "/hello")
		wantError(t, err, nil, "/hello", "Linux")
	})
	t.Run("what is not there is refused", func(t *testing.T) {
		p := p.in(t)
		_, err := p.exec(module, "/missing.wasm")
		wantError(t, err, nil, "/missing.wasm", "no such file")
		_, err = p.exec(sidecar, "/missing")
		wantError(t, err, nil, "/missing")
	})
	for name, c := range map[string]struct {
		in  string
		cmd []string
	}{
		"a module":        {module, []string{"/app.wasm", "idle"}},
		"a spinning one":  {module, []string{"/spin.wasm"}},
		"a Linux program": {sidecar, []string{"/bin/busybox", "sleep", "100000"}},
	} {
		t.Run(name+" that takes too long is ended", func(t *testing.T) {
			p := p.in(t)
			before := p.processes()
			_, err := p.n.Pods().ExecSync(p.ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.in, Cmd: c.cmd, Timeout: 1})
			wantError(t, errgrpc.ToNative(err), context.DeadlineExceeded)
			if after := p.processes(); !slices.Equal(before, after) {
				t.Errorf("the pod has processes %v, had %v", after, before)
			}
		})
	}
	t.Run("as probes are, many and at the same time", func(t *testing.T) {
		p := p.in(t)
		errs := make(chan error)
		const n = 8
		for i := range n {
			go func() {
				resp, err := p.exec(module, "/app.wasm", "print", strconv.Itoa(i))
				if want := fmt.Sprintln(i); err == nil && string(resp.Stdout) != want {
					err = fmt.Errorf("printed %q, want %q", resp.Stdout, want)
				}
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	if s := p.status(module); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container afterwards: %v", s)
	}
	p.stop(module, 10)
	t.Run("after the end it is refused", func(t *testing.T) {
		p := p.in(t)
		_, err := p.exec(module, "/app.wasm")
		wantError(t, err, nil, "CONTAINER_EXITED")
	})
}

// processes are those of the pod's containers.
func (p *criPod) processes() (pids []string) {
	p.Helper()
	dirs := cgroupDirs(p.config.Linux.CgroupParent + "/*")
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for pid := range strings.FieldsSeq(string(data)) {
			if !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return pids
}

func TestContract16StoppingAContainer(t *testing.T) {
	p := runPod(t)
	for _, c := range []struct {
		name   string
		signal string // of the image
		grace  int64
		args   []string
		code   int32
	}{
		{"SIGTERM ends a module at once", "", 100, idleModule, 143},
		{"and one that keeps the collector busy", "", 100, []string{"print", "up", "garbage"}, 143},
		{"without grace it is killed", "", 0, idleModule, 137},
		{"by the signal of its image", "SIGUSR1", 100, idleModule, 138},
		{"by number", "1", 100, idleModule, 129},
		{"SIGINT", "SIGINT", 100, idleModule, 130},
		{"by SIGKILL, when it is stopped by one that ends nothing", "SIGWINCH", 1, idleModule, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			image := probeImage
			if c.signal != "" {
				image = "example.com/stop" + strings.ToLower(c.signal) + ":latest"
				podImage(t, p.n, image, ocispec.ImageConfig{Entrypoint: []string{"/app.wasm"}, StopSignal: c.signal}, node.Regular("app.wasm", guest(t, "probe.wasm")))
			}
			id := p.run(image, c.args)
			p.running(id, "up\n")
			p.stop(id, c.grace)
			if s := p.status(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != c.code {
				t.Errorf("%v, want exit code %d", s, c.code)
			}
			p.stop(id, c.grace) // again, as the kubelet may
		})
	}
	t.Run("a Linux program may end in its own way", func(t *testing.T) {
		p := p.in(t)
		id := p.run(busyboxImage, []string{"sh", "-c", "trap 'echo down; exit 9' TERM; echo up; while :; do sleep 0.1; done"})
		p.running(id, "up\n")
		p.stop(id, 100)
		if s := p.status(id); s.ExitCode != 9 || p.output(id, "stdout") != "up\ndown\n" {
			t.Errorf("%v, printed %q", s, p.output(id, "stdout"))
		}
	})
}

func TestContract09TheReasonOfABadModuleReachesTheUser(t *testing.T) {
	p := runPod(t)
	podImage(t, p.n, "example.com/bad:latest", ocispec.ImageConfig{},
		node.Regular("text.wasm", []byte("no module")), node.Regular("cut.wasm", guest(t, "probe.wasm")[:1000]),
		node.Regular("nostart.wasm", guest(t, "nostart.wasm")), node.Regular("badimport.wasm", guest(t, "badimport.wasm")))
	good := p.run(probeImage, idleModule)
	for path, reason := range map[string]string{
		"/missing.wasm":   "no such file",
		"/text.wasm":      "",
		"/cut.wasm":       "",
		"/nostart.wasm":   "_start",
		"/badimport.wasm": "import",
	} {
		t.Run(path, func(t *testing.T) {
			p := p.in(t)
			id := p.create("example.com/bad:latest", nil, command(path))
			wantError(t, p.start(id), nil, path, reason)
			s := p.status(id)
			if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || !strings.Contains(s.Message, path) || !strings.Contains(s.Message, reason) {
				t.Errorf("status %v", s)
			}
			p.removeContainer(id)
		})
	}
	if s := p.status(good); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the good one beside them: %v", s)
	}
}

func TestContract10AStartInAPodHoldsUpNoOtherContainer(t *testing.T) {
	p := runPod(t)
	podImage(t, p.n, "example.com/large:latest", ocispec.ImageConfig{Entrypoint: []string{"/app.wasm"}}, node.Regular("app.wasm", guest(t, "esbuild.wasm")))
	module, sidecar := p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)
	large := p.create("example.com/large:latest", []string{"--version"})
	started := make(chan error, 1)
	go func() { started <- p.start(large) }()
	rounds := 0
	for done := false; !done; {
		select {
		case err := <-started: // seconds later: it has to be compiled
			if err != nil {
				t.Error(err)
			}
			done = true
		default:
			for id, cmd := range map[string][]string{module: {"/app.wasm"}, sidecar: {"/bin/busybox", "true"}} {
				_, err := p.exec(id, cmd...)
				if err == nil {
					_, err = p.n.Pods().ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
				}
				if err != nil {
					<-started
					t.Fatal(err)
				}
			}
			rounds++
		}
	}
	if rounds < 3 {
		t.Errorf("the others were asked %d times meanwhile", rounds)
	}
	if s := p.exited(large); s.ExitCode != 0 {
		t.Errorf("%v", s)
	}
}

func TestContract32PodsOutliveContainerd(t *testing.T) {
	p := runPod(t)
	ticking := p.run(probeImage, []string{"tick", "20ms"})
	sidecar := p.run(busyboxImage, idleLinux)
	// These end while nobody is there to be told.
	doomed := []string{p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)}
	p.running(ticking, "tick: 3\n")
	pids := map[string]int{}
	for id := range p.names {
		pids[id] = p.pid(id)
	}
	if err := p.n.Halt(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, id := range doomed {
		if err := syscall.Kill(pids[id], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is dead", func() bool { return !alive(pids[id]) })
	}
	if err := p.n.Boot(p.ctx); err != nil {
		t.Fatal(err)
	}
	if s := p.state(); s != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", s)
	}
	for _, id := range []string{ticking, sidecar} {
		if s := p.status(id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || p.pid(id) != pids[id] {
			t.Errorf("container %s: %v, pid %d, had %d", p.names[id], s, p.pid(id), pids[id])
		}
	}
	for _, id := range doomed {
		if s := p.exited(id); s.ExitCode != 137 {
			t.Errorf("one that was killed: %v", s)
		}
	}
	t.Run("their logs go on", func(t *testing.T) {
		p := p.in(t)
		last := strings.Count(p.output(ticking, "stdout"), "tick:")
		p.running(ticking, fmt.Sprintf("tick: %d\n", last+20))
		missing, next := 0, 0
		for _, m := range regexp.MustCompile(`tick: (\d+)\n`).FindAllStringSubmatch(p.output(ticking, "stdout"), -1) {
			n, err := strconv.Atoi(m[1])
			if err != nil || n < next {
				t.Errorf("tick %s after tick %d", m[1], next-1)
			}
			missing += n - next
			next = n + 1
		}
		// containerd may have had one line in its hands.
		if missing > 1 {
			t.Errorf("%d lines are missing: %s", missing, p.output(ticking, "stdout"))
		}
	})
	t.Run("exec goes on", func(t *testing.T) {
		p := p.in(t)
		for id, cmd := range map[string][]string{ticking: {"/app.wasm", "print", "x"}, sidecar: {"/bin/busybox", "echo", "x"}} {
			if resp, err := p.exec(id, cmd...); err != nil || string(resp.Stdout) != "x\n" {
				t.Errorf("%s: %v, %v", p.names[id], resp, err)
			}
		}
	})
	t.Run("figures go on", func(t *testing.T) {
		p := p.in(t)
		for id, s := range p.stats() {
			if !slices.Contains(doomed, id) && s.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 {
				t.Errorf("%s: %v", p.names[id], s)
			}
		}
	})
	t.Run("new containers are made on the same shim", func(t *testing.T) {
		p := p.in(t)
		if got := p.finished(probeImage, []string{"print", "new"}); got != "new\n" {
			t.Errorf("printed %q", got)
		}
		if n := len(criShims(t, p.n)); n != 1 {
			t.Errorf("%d shims", n)
		}
	})
	p.stop(ticking, 100)
	if s := p.status(ticking); s.ExitCode != 143 {
		t.Errorf("stopped: %v", s)
	}
}

func TestContract33ThePodsOfAShimThatWasKilled(t *testing.T) {
	p := newPod(t)
	before := criShims(t, p.n)
	p.up("wazero")
	ids := []string{p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)}
	pids := p.processes()
	for pid := range criShims(t, p.n) {
		if before[pid] == "" {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range ids {
		if s := p.exited(id); s.ExitCode == 0 {
			t.Errorf("%v", s)
		}
	}
	eventually(t, "the pod is not ready", func() bool { return p.state() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY })
	eventually(t, "its processes are gone", func() bool {
		return !slices.ContainsFunc(pids, func(s string) bool { pid, _ := strconv.Atoi(s); return alive(pid) })
	})
}

func TestWhatAContainerInAPodIsGiven(t *testing.T) {
	p := runPod(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"config/key": "value\n", "config/other": "o\n", "secret": "s\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	memory := filepath.Join(dir, "memory")
	if err := os.Mkdir(memory, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", memory, "tmpfs", 0, "mode=0777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(memory, syscall.MNT_DETACH) })
	mounts := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/config", HostPath: filepath.Join(dir, "config"), Readonly: true},
			{ContainerPath: "/etc/app/key", HostPath: filepath.Join(dir, "config/key"), Readonly: true}, // a subPath
			{ContainerPath: "/memory", HostPath: memory},
		}
	}
	t.Run("volumes", func(t *testing.T) {
		p := p.in(t)
		if got, want := p.finished(probeImage, []string{"cat", "/config/key", "ls", "/config", "cat", "/etc/app/key", "write", "/memory/f", "from the guest\n"}, mounts),
			"value\nentry: key\nentry: other\nvalue\n"; got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
		if got := p.finished(busyboxImage, []string{"cat", "/memory/f"}, mounts); got != "from the guest\n" {
			t.Errorf("the sidecar finds %q", got)
		}
	})
	t.Run("which are read-only where they are", func(t *testing.T) {
		p := p.in(t)
		for _, path := range []string{"/config/new", "/etc/app/key"} {
			id := p.run(probeImage, []string{"write", path, "x"}, mounts)
			if s := p.exited(id); s.ExitCode != 1 || !strings.Contains(p.output(id, "stdout"), path) {
				t.Errorf("%s: %v: %s", path, s, p.log(id))
			}
		}
	})
	t.Run("and what is mounted below them too, if asked for", func(t *testing.T) {
		p := p.in(t)
		// containerd does not survive the question when it has not heard that the
		// shim can do it.
		if f := features(t, p.n)["wazero"]; f == nil || !f.RecursiveReadOnlyMounts {
			t.Fatalf("the handler has %v", f)
		}
		id := p.run(probeImage, []string{"cat", "/strict/config/key", "write", "/strict/memory/r", "x"}, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/strict", HostPath: dir, Readonly: true, RecursiveReadOnly: true}}
		})
		if s, got := p.exited(id), p.output(id, "stdout"); s.ExitCode != 1 || !strings.HasPrefix(got, "value\nerror:") || !strings.Contains(got, "/strict/memory/r") {
			t.Errorf("%v: %q", s, got)
		}
	})
	t.Run("the pod's own files", func(t *testing.T) {
		p := p.in(t)
		got := p.finished(probeImage, []string{"cat", "/etc/hostname", "ls", "/etc", "write", "/dev/shm/f", "from the guest\n"})
		if !strings.HasPrefix(got, "pod-host\n") || !strings.Contains(got, "entry: resolv.conf\n") {
			t.Errorf("printed %q", got)
		}
		if got := p.finished(busyboxImage, []string{"cat", "/dev/shm/f"}); got != "from the guest\n" {
			t.Errorf("the sidecar finds %q in the shared memory", got)
		}
	})
	t.Run("what the kubelet adds to every container", func(t *testing.T) {
		p := p.in(t)
		message, token := filepath.Join(dir, "message"), filepath.Join(dir, "secret")
		if err := os.WriteFile(message, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		image := "example.com/run:latest"
		podImage(t, p.n, image, ocispec.ImageConfig{Entrypoint: []string{"/app.wasm"}}, node.Regular("app.wasm", guest(t, "probe.wasm")),
			node.File{Header: tar.Header{Name: "var/run", Typeflag: tar.TypeSymlink, Linkname: "/run"}}, node.File{Header: tar.Header{Name: "run/", Typeflag: tar.TypeDir, Mode: 0o755}})
		got := p.finished(image, []string{"cat", "/run/secrets/kubernetes.io/serviceaccount/token", "write", "/dev/termination-log", "the end"}, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount/token", HostPath: token, Readonly: true},
				{ContainerPath: "/dev/termination-log", HostPath: message},
			}
		})
		if data, err := os.ReadFile(message); string(data) != "the end" || got != "s\n" {
			t.Errorf("the message is %q, %v; printed %q", data, err, got)
		}
	})
	t.Run("what its image says", func(t *testing.T) {
		p := p.in(t)
		image := "example.com/configured:latest"
		podImage(t, p.n, image, ocispec.ImageConfig{
			Entrypoint: []string{"/app.wasm", "cwd"}, Cmd: []string{"env"}, User: "1234:5678", WorkingDir: "/home",
			Env: []string{"OF=the image"}, Volumes: map[string]struct{}{"/volume": {}},
		}, node.Regular("app.wasm", guest(t, "probe.wasm")), node.File{Header: tar.Header{Name: "home/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1234, Gid: 5678}},
			node.File{Header: tar.Header{Name: "volume/", Typeflag: tar.TypeDir, Mode: 0o777}}, node.Regular("volume/f", []byte("of the volume\n")))
		if got, want := p.finished(image, nil), "cwd: /home\nenv: HOSTNAME=pod-host\nenv: OF=the image\n"; !strings.HasPrefix(got, want) {
			t.Errorf("printed %q, want %q", got, want)
		}
		if got := p.finished(image, []string{"write", "mine", "x", "ls", ".", "cat", "/volume/f"}); got != "cwd: /home\nentry: mine\nof the volume\n" {
			t.Errorf("printed %q", got)
		}
	})
	for name, security := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"no capability at all": func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		},
		"more capabilities": func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_TIME"}}
		},
		"the runtime's seccomp profile": func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := p.in(t)
			set := func(c *runtimeapi.ContainerConfig) { security(c.Linux.SecurityContext) }
			if got := p.finished(probeImage, []string{"print", "x"}, set); got != "x\n" {
				t.Errorf("printed %q", got)
			}
		})
	}
	t.Run("environment and working directory", func(t *testing.T) {
		p := p.in(t)
		got := p.finished(probeImage, []string{"cwd", "cat", "motd", "env"}, func(c *runtimeapi.ContainerConfig) {
			c.WorkingDir = "/etc"
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1 2")}, {Key: "B"}}
		})
		if want := "cwd: /etc\na file of the image\nenv: A=1 2\nenv: B=\nenv: HOSTNAME=pod-host\nenv: PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nenv: PWD=/etc\n"; got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
	})
	t.Run("a user", func(t *testing.T) {
		p := p.in(t)
		id := p.run(probeImage, []string{"print", "up", "write", "/f", "x"}, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 5678}
			c.Linux.SecurityContext.NoNewPrivs = true
		})
		if s := p.exited(id); s.ExitCode != 1 || !strings.Contains(p.output(id, "stdout"), "/f") {
			t.Errorf("%v: %s", s, p.log(id))
		}
		id = p.run(probeImage, []string{"write", "/memory/mine", "x", "print", "up", "idle"}, mounts, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 5678}
			c.Linux.SecurityContext.SupplementalGroups = []int64{77}
		})
		p.running(id, "up\n")
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(memory, "mine"), &st); err != nil || st.Uid != 1234 || st.Gid != 5678 {
			t.Errorf("the file is of %d:%d, %v", st.Uid, st.Gid, err)
		}
		if got := procStatus(t, p.pid(id), "Groups"); !slices.Contains(strings.Fields(got), "77") {
			t.Errorf("groups %q", got)
		}
	})
	t.Run("a read-only root", func(t *testing.T) {
		p := p.in(t)
		id := p.run(probeImage, []string{"write", "/memory/g", "x", "print", "up", "write", "/f", "x"}, mounts, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.ReadonlyRootfs = true
		})
		if s, got := p.exited(id), p.output(id, "stdout"); s.ExitCode != 1 || !strings.HasPrefix(got, "up\nerror:") || !strings.Contains(got, "/f") {
			t.Errorf("%v: %q", s, got)
		}
	})
	t.Run("no standard input, unless asked for", func(t *testing.T) {
		p := p.in(t)
		if got := p.finished(probeImage, []string{"stdin"}); got != "lines: 0\n" {
			t.Errorf("printed %q", got)
		}
		// Nobody attaches, and so there is no end to it.
		id := p.run(probeImage, []string{"print", "up", "stdin"}, func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
		p.running(id, "up\n")
		p.stop(id, 100)
		if s := p.status(id); s.ExitCode != 143 {
			t.Errorf("%v", s)
		}
	})
}

func TestContract28ATerminalInAPod(t *testing.T) {
	p := runPod(t)
	tty := func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }
	for image, args := range map[string][]string{probeImage: {"print", "out", "stderr", "err"}, busyboxImage: {"sh", "-c", "echo out; echo err >&2"}} {
		id := p.run(image, args, tty)
		if s := p.exited(id); s.ExitCode != 0 || p.output(id, "stdout") != "out\nerr\n" { // all in one stream
			t.Errorf("%s: %v: log %q", image, s, p.log(id))
		}
	}
}

func TestAPrivilegedPod(t *testing.T) {
	p := newPod(t)
	p.config.Linux.SecurityContext.Privileged = true
	p.up("wazero")
	privileged := func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }
	// It asks for the host's devices, and has them. The kernel's own file systems a
	// module gets in no case.
	if got := p.finished(probeImage, []string{"ls", "/dev"}, privileged); !strings.Contains(got, "entry: null\n") || !strings.Contains(got, "entry: kmsg\n") {
		t.Errorf("the module has devices %q", got)
	}
	if got := p.finished(probeImage, []string{"ls", "/dev"}); strings.Contains(got, "entry: kmsg\n") {
		t.Errorf("a module that is not privileged has devices %q", got)
	}
	id := p.run(probeImage, []string{"cat", "/sys/kernel/uevent_seqnum"}, privileged)
	if s := p.exited(id); s.ExitCode == 0 {
		t.Errorf("the module has a sysfs: %v", p.log(id))
	}
	if got := p.finished(busyboxImage, []string{"sh", "-c", "mount -t tmpfs none /mnt 2>&1 || mkdir /mnt && mount -t tmpfs none /mnt && echo mounted"}, privileged); !strings.HasSuffix(got, "mounted\n") {
		t.Errorf("the sidecar cannot mount: %q", got)
	}
}

// procStatus is a field of /proc/PID/status.
func procStatus(t *testing.T, pid int, field string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("no %s in %s", field, data)
	return ""
}

func TestContract31NamespacesOfAPod(t *testing.T) {
	t.Run("network, IPC and UTS are the pod's, PID is the container's own", func(t *testing.T) {
		p := runPod(t)
		module, sidecar := p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)
		for _, kind := range []string{"net", "ipc", "uts"} {
			want := p.namespace(p.id, kind)
			if want == namespace(t, "self", kind) {
				t.Errorf("%s: the pod has the host's", kind)
			}
			for _, id := range []string{module, sidecar} {
				if got := p.namespace(id, kind); got != want {
					t.Errorf("%s: container %s has %s, the pod %s", kind, p.names[id], got, want)
				}
			}
		}
		pids := []string{p.namespace(p.id, "pid"), p.namespace(module, "pid"), p.namespace(sidecar, "pid"), namespace(t, "self", "pid")}
		slices.Sort(pids)
		if len(slices.Compact(pids)) != 4 {
			t.Errorf("PID namespaces %v", pids)
		}
		// And the network is one that works: the address is the one CRI tells of.
		resp, err := p.n.Pods().PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.finished(busyboxImage, []string{"ip", "-o", "addr"}); !strings.Contains(got, "inet "+resp.Status.Network.Ip+"/") || !strings.Contains(got, "inet 127.0.0.1/") {
			t.Errorf("addresses %q, want %s", got, resp.Status.Network.Ip)
		}
	})
	t.Run("the host's network", func(t *testing.T) {
		p := newPod(t)
		p.namespaces().Network = runtimeapi.NamespaceMode_NODE
		p.config.Hostname = ""
		p.up("wazero")
		for _, id := range []string{p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux), p.id} {
			for _, kind := range []string{"net", "uts"} {
				if got, want := p.namespace(id, kind), namespace(t, "self", kind); got != want {
					t.Errorf("%s: %s, the host has %s", kind, got, want)
				}
			}
		}
	})
	t.Run("the host's processes and IPC", func(t *testing.T) {
		p := newPod(t)
		p.namespaces().Pid, p.namespaces().Ipc = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
		p.up("wazero")
		module, sidecar := p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)
		for _, id := range []string{module, sidecar, p.id} {
			for _, kind := range []string{"pid", "ipc"} {
				if got, want := p.namespace(id, kind), namespace(t, "self", kind); got != want {
					t.Errorf("%s: %s, the host has %s", kind, got, want)
				}
			}
		}
		if resp, err := p.exec(module, "/app.wasm", "print", "x"); err != nil || string(resp.Stdout) != "x\n" {
			t.Errorf("exec: %v, %v", resp, err)
		}
		p.stop(module, 100)
		if s := p.status(module); s.ExitCode != 143 {
			t.Errorf("stopped: %v", s)
		}
	})
	t.Run("one for the processes of the pod", func(t *testing.T) {
		p := newPod(t)
		p.namespaces().Pid = runtimeapi.NamespaceMode_POD
		p.up("wazero")
		module, sidecar := p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)
		want := p.namespace(p.id, "pid")
		if want == namespace(t, "self", "pid") {
			t.Error("the pod has the host's")
		}
		for _, id := range []string{module, sidecar} {
			if got := p.namespace(id, "pid"); got != want {
				t.Errorf("container %s has %s, the pod %s", p.names[id], got, want)
			}
		}
		if resp, err := p.exec(module, "/app.wasm", "print", "x"); err != nil || string(resp.Stdout) != "x\n" {
			t.Errorf("exec: %v, %v", resp, err)
		}
		// The sidecar sees the guest's process, under its number there.
		inside := strings.Fields(procStatus(t, p.pid(module), "NSpid"))
		resp, err := p.exec(sidecar, "/bin/busybox", "cat", "/proc/"+inside[len(inside)-1]+"/cmdline")
		if err != nil || !strings.HasPrefix(string(resp.GetStdout()), "containerd-shim-wazero-v1\x00") {
			t.Errorf("the guest's process as the sidecar sees it: %v, %v", resp, err)
		}
		p.stop(module, 100)
		if s := p.status(module); s.ExitCode != 143 {
			t.Errorf("stopped: %v", s)
		}
		if s := p.status(sidecar); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the sidecar: %v", s)
		}
	})
	t.Run("and its end is that of all", func(t *testing.T) {
		p := newPod(t)
		p.namespaces().Pid = runtimeapi.NamespaceMode_POD
		p.up("wazero")
		module, sidecar := p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)
		if err := syscall.Kill(p.pid(p.id), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{module, sidecar} {
			if s := p.exited(id); s.ExitCode != 137 {
				t.Errorf("%v", s)
			}
		}
	})
	t.Run("those of another container", func(t *testing.T) {
		p := runPod(t)
		module, sidecar := p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)
		target := func(id string) option {
			return func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
				c.Linux.SecurityContext.NamespaceOptions.TargetId = id
			}
		}
		for of, id := range map[string]string{module: p.run(busyboxImage, idleLinux, target(module)), sidecar: p.run(probeImage, idleModule, target(sidecar))} {
			if got, want := p.namespace(id, "pid"), p.namespace(of, "pid"); got != want {
				t.Errorf("container %s has %s, its target %s", p.names[id], got, want)
			}
		}
	})
}

func TestContract31AUserNamespaceOfAPod(t *testing.T) {
	p := newPod(t)
	const first, length = 200_000, 65536
	ids := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: length}}
	p.namespaces().UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	p.up("wazero")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("of the container's root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: dir, UidMappings: ids, GidMappings: ids}}
	}
	module := p.run(probeImage, []string{"cat", "/volume/secret", "write", "/volume/module", "x", "write", "/etc/new", "x", "print", "up", "idle"}, volume)
	sidecar := p.run(busyboxImage, []string{"sh", "-c", "cat /volume/secret && touch /volume/sidecar && cat /proc/self/uid_map && echo up && exec sleep 100000"}, volume)
	for _, id := range []string{module, sidecar} {
		p.running(id, "of the container's root\n")
		p.running(id, "up\n")
		if got := strings.Fields(procStatus(t, p.pid(id), "Uid")); got[0] != strconv.Itoa(first) || got[1] != strconv.Itoa(first) {
			t.Errorf("container %s runs as %v of the host", p.names[id], got)
		}
	}
	if got := procStatus(t, p.pid(module), "CapEff"); strings.Trim(got, "0") != "" {
		t.Errorf("the guest's process has capabilities: %s", got)
	}
	// Root of the container is root to its volumes: they are mapped.
	for _, name := range []string{"module", "sidecar"} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, name), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
			t.Errorf("%s is of %d:%d, %v", name, st.Uid, st.Gid, err)
		}
	}
	resp, err := p.exec(module, "/app.wasm", "cat", "/volume/secret", "write", "/volume/exec", "x")
	if err != nil || resp.ExitCode != 0 {
		t.Errorf("exec: %v, %v", resp, err)
	}
	t.Run("a user in it", func(t *testing.T) {
		p := p.in(t)
		id := p.run(probeImage, []string{"write", "/volume/user", "x", "print", "up", "cat", "/volume/secret"}, volume, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 5678}
		})
		if s, got := p.exited(id), p.output(id, "stdout"); s.ExitCode != 1 || !strings.HasPrefix(got, "up\nerror:") {
			t.Errorf("%v: printed %q", s, got)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, "user"), &st); err != nil || st.Uid != 1234 || st.Gid != 5678 {
			t.Errorf("its file is of %d:%d, %v", st.Uid, st.Gid, err)
		}
	})
	t.Run("one that is not mapped is refused", func(t *testing.T) {
		p := p.in(t)
		id := p.create(probeImage, nil, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: length}
		})
		wantError(t, p.start(id), nil, strconv.Itoa(length))
	})
	t.Run("its root has the working directory that is made for it", func(t *testing.T) {
		p := p.in(t)
		if got := p.finished(probeImage, []string{"write", "f", "made", "cat", "/made/here/f"}, func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/made/here" }); got != "made" {
			t.Errorf("printed %q", got)
		}
	})
}

func TestContract23TheResourcesOfAContainerInAPod(t *testing.T) {
	p := runPod(t)
	limits := func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200 << 20, CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, OomScoreAdj: 321}
	}
	for name, id := range map[string]string{"module": p.run(probeImage, idleModule, limits), "sidecar": p.run(busyboxImage, idleLinux, limits)} {
		t.Run(name, func(t *testing.T) {
			p := p.in(t)
			p.wantLimits(id, "209715200", "50000 100000")
			if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid(id))); string(data) != "321\n" {
				t.Errorf("oom_score_adj %q, %v", data, err)
			}
			_, err := p.n.Pods().UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 300 << 20, CpuPeriod: 100_000, CpuQuota: 70_000},
			})
			if err != nil {
				t.Fatal(err)
			}
			p.wantLimits(id, "314572800", "70000 100000")
			if s := p.status(id); s.Resources.GetLinux().GetMemoryLimitInBytes() != 300<<20 || s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("status %v", s)
			}
		})
	}
}

// wantLimits reads the limits of a container from its cgroup.
func (p *criPod) wantLimits(id, memory, cpu string) {
	p.Helper()
	read := func(name string) string {
		for _, dir := range cgroupDirs(p.config.Linux.CgroupParent + "/" + id) {
			if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				return strings.TrimSpace(string(data))
			}
		}
		return ""
	}
	if got := read("memory.limit_in_bytes") + read("memory.max"); got != memory {
		p.Errorf("memory limit %q, want %q", got, memory)
	}
	got := read("cpu.max")
	if got == "" {
		got = read("cpu.cfs_quota_us") + " " + read("cpu.cfs_period_us")
	}
	if got != cpu {
		p.Errorf("quota and period %q, want %q", got, cpu)
	}
}

func TestContract35And36RuntimeHandlers(t *testing.T) {
	all := features(t, usePods(t))
	// What -info says: the kubelet lets no pod with a user namespace come otherwise.
	for _, name := range []string{"wazero", "wazero-path", "wazero-v1", "wazero-options"} {
		if f := all[name]; f == nil || !f.UserNamespaces || f.RecursiveReadOnlyMounts != all["runc"].GetRecursiveReadOnlyMounts() {
			t.Errorf("handler %s has %v, runc %v", name, f, all["runc"])
		}
	}
	for name, why := range map[string]string{"wazero-path": "by the path of the binary", "wazero-v1": "by the path as its type, as runtime-class-manager has it", "wazero-options": "with options"} {
		t.Run(why, func(t *testing.T) {
			p := newPod(t).up(name)
			module, sidecar := p.run(probeImage, idleModule), p.run(busyboxImage, idleLinux)
			p.running(module, "up\n")
			p.running(sidecar, "up\n")
			if resp, err := p.exec(module, "/app.wasm", "print", "x"); err != nil || string(resp.Stdout) != "x\n" {
				t.Errorf("exec: %v, %v", resp, err)
			}
		})
	}
}

// features are those of the node's runtime handlers.
func features(t *testing.T, n *node.Node) map[string]*runtimeapi.RuntimeHandlerFeatures {
	t.Helper()
	resp, err := n.Pods().Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	for _, h := range resp.RuntimeHandlers {
		all[h.Name] = h.Features
	}
	return all
}

func TestContract34AHundredContainersOfAPodLeaveNothing(t *testing.T) {
	p := runPod(t)
	all := slices.Collect(maps.Keys(criShims(t, p.n)))
	if len(all) != 1 {
		t.Fatalf("%d shims", len(all))
	}
	run := func() {
		for range 10 {
			errs := make(chan error, 2)
			ids := []string{p.create(probeImage, []string{"print", "x"}), p.create(probeImage, []string{"idle"})}
			for _, id := range ids {
				go func() { errs <- p.start(id) }()
			}
			for range ids {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			for _, id := range ids {
				p.stop(id, 0)
				p.exited(id) // one that ends by itself meanwhile is deleted before CRI's state says so
				p.removeContainer(id)
			}
		}
	}
	descriptors := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", all[0]))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	run()
	between, had := podTraces(t, p.n), descriptors()
	for range 4 {
		run()
	}
	nothingMore(t, between, func() []string { return podTraces(t, p.n) })
	if got := descriptors(); got > had+2 {
		t.Errorf("the shim has %d descriptors open, had %d", got, had)
	}
}
