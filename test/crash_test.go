package test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// reload finds a box again after a restart of containerd; with attach by a client
// that knows nothing of the one before.
func (b *box) reload(t *testing.T, attach bool) {
	t.Helper()
	c, err := b.node.Client.LoadContainer(b.ctx, b.ID())
	if err != nil {
		t.Fatal(err)
	}
	var how cio.Attach
	old := b.task.IO()
	if attach {
		old.Cancel()
		old.Wait()
		var r *io.PipeReader
		r, b.stdin = io.Pipe()
		b.stdout, b.stderr = &buffer{}, &buffer{}
		how = cio.NewAttach(cio.WithStreams(r, b.stdout, b.stderr))
	}
	task, err := c.Task(b.ctx, how)
	if err != nil {
		t.Fatalf("%s after the restart: %v", b.ID(), err)
	}
	b.Container, b.task = c, task
	if !attach && old != nil {
		t.Cleanup(func() { old.Cancel(); old.Close() })
	}
}

func TestContract32TasksOutliveContainerd(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "restarted": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, options())
			img := image(t, n, "outlive", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Program("busybox", guest(t, "busybox")))
			before := traces(t, n)
			boxes := make([]*box, 20)
			for i := range boxes {
				// Every fifth is a Linux container; four at a time are in one shim.
				opts := []oci.SpecOpts{args("/app.wasm", "print", "ready", "stdin", "exit", strconv.Itoa(i))}
				if i%5 == 4 {
					opts[0] = args("/busybox", "sh", "-c", fmt.Sprintf("echo ready; n=0; while read l; do echo stdin: $l; n=$((n+1)); done; echo lines: $n; exit %d", i))
				}
				if i >= 12 {
					opts = append(opts, oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": fmt.Sprint("pod-", i/4)}))
				}
				boxes[i] = container(t, n, img, opts...)
				boxes[i].mustCreate(t, true)
				boxes[i].mustStart(t)
			}
			say := func(b *box, line string) {
				t.Helper()
				if _, err := io.WriteString(b.stdin, line+"\n"); err != nil {
					t.Fatal(err)
				}
			}
			hears := func(b *box, line string) {
				t.Helper()
				eventually(t, b.ID()+" has printed "+line, func() bool { return strings.Contains(b.stdout.String(), line+"\n") })
			}
			for _, b := range boxes {
				hears(b, "ready")
				say(b, "before")
				hears(b, "stdin: before")
			}
			shims := map[int]bool{}
			for _, b := range boxes {
				shims[shimPID(t, n, b.ID())] = true
			}
			if len(shims) != 14 {
				t.Errorf("%d shims", len(shims))
			}
			lost, killed := boxes[3], boxes[19]
			direct := shimClient(t, n, lost.ID())
			if err := n.Halt(sig); err != nil {
				t.Fatal(err)
			}
			for _, b := range boxes {
				say(b, "meanwhile")
				hears(b, "stdin: meanwhile")
			}
			// Two end while nobody is there to be told.
			if _, err := direct.CloseIO(lost.ctx, &taskapi.CloseIORequest{ID: lost.ID(), Stdin: true}); err != nil {
				t.Fatal(err)
			}
			lost.stdin.Close()
			if err := syscall.Kill(int(killed.task.Pid()), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "both have ended", func() bool { return !alive(int(lost.task.Pid())) && !alive(int(killed.task.Pid())) })
			if err := n.Boot(t.Context()); err != nil {
				t.Fatal(err)
			}
			rec := record(t, n)
			for i, b := range boxes {
				pid := b.task.Pid()
				b.reload(t, i%2 == 0)
				if b.task.Pid() != pid {
					t.Errorf("%s: pid %d, was %d", b.ID(), b.task.Pid(), pid)
				}
				if b == lost || b == killed {
					continue
				}
				if s, err := b.task.Status(b.ctx); err != nil || s.Status != containerd.Running {
					t.Errorf("%s: %v, %v", b.ID(), s.Status, err)
				}
				say(b, "after")
				hears(b, "stdin: after")
			}
			for i, b := range boxes {
				want := uint32(i)
				switch b {
				case killed:
					want = 137
				case lost:
				default:
					program := "/app.wasm"
					if i%5 == 4 {
						program = "/busybox"
					}
					if program == "/busybox" {
						if e, status := b.runExec(t, "e", nil, program, "echo", "exec"); status != 0 || e.stdout.String() != "exec\n" {
							t.Errorf("%s: exec: %d, %q", b.ID(), status, e.stdout)
						}
					} else if e, status := b.runExec(t, "e", nil, program, "print", "exec"); status != 0 || e.stdout.String() != "exec\n" {
						t.Errorf("%s: exec: %d, %q", b.ID(), status, e.stdout)
					}
					b.stdin.Close()
					b.closeStdin(t)
				}
				if got := b.exit(t); got != want {
					t.Errorf("%s: exit status %d, want %d", b.ID(), got, want)
				}
				if b != killed {
					hears(b, map[bool]string{false: "lines: 3", true: "lines: 2"}[b == lost])
				}
				if b != lost && b != killed {
					eventually(t, "the exit of "+b.ID()+" is reported", func() bool {
						return slices.Contains(names(rec.of(b.ID(), 0)), "exit")
					})
				}
				b.delete(t)
			}
			for _, b := range boxes {
				b.remove()
			}
			left := traces(t, n)
			for pid := range shims {
				eventually(t, "the shims end", func() bool { return !alive(pid) })
			}
			leaves(t, n, append(before, only(left, n.Dir+"/fifo/")...))
		})
	}
}

// only are those of some traces that begin with the prefix.
func only(traces []string, prefix string) (some []string) {
	for _, s := range traces {
		if strings.HasPrefix(s, prefix) {
			some = append(some, s)
		}
	}
	return some
}

func TestContract32And33TheBinaryIsReplacedUnderRunningShims(t *testing.T) {
	// The ordinary program: one with the race detector starts others, by their name.
	dir := t.TempDir()
	shim := filepath.Join(dir, "containerd-shim-wazero-v1")
	data, err := os.ReadFile(filepath.Join(bin(), "containerd-shim-wazero-v1"))
	if err != nil {
		need(t)
		t.Fatal(err)
	}
	install := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(shim+".new", content, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(shim+".new", shim); err != nil {
			t.Fatal(err)
		}
	}
	install(data)
	opts := options()
	opts.Shim = dir
	n := newNode(t, opts)
	img := image(t, n, "replaced", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("hello.wasm", guest(t, "hello.wasm")))
	before := traces(t, n)
	rec := record(t, n)
	group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "replaced"})
	b := container(t, n, img, args("/app.wasm", "idle"), group)
	b.mustCreate(t)
	b.mustStart(t)
	old, err := os.Stat(shim)
	if err != nil {
		t.Fatal(err)
	}
	// The next version: it can do what containerd asks a binary for, and fails
	// whatever else it is run for.
	install([]byte("#!/bin/sh\nfor a; do case $a in start|delete|-info) exec " + shim + ".next \"$@\";; esac; done\nexit 99\n"))
	if err := os.WriteFile(shim+".next", append(slices.Clone(data), "another version"...), 0o755); err != nil {
		t.Fatal(err)
	}
	exe := func(pid int) os.FileInfo {
		t.Helper()
		info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	if !os.SameFile(exe(shimPID(t, n, b.ID())), old) {
		t.Error("the shim is not of its own version")
	}
	// What instances run, if it is not the same program, a next version may remove.
	instances := exe(int(b.task.Pid()))
	if err := os.RemoveAll(filepath.Join(n.Dir, "root", node.Runtime, "bin")); err != nil {
		t.Fatal(err)
	}
	ofOld := func(what string, pid int) {
		t.Helper()
		if !os.SameFile(exe(pid), instances) {
			t.Errorf("%s is not of the shim's own version", what)
		}
	}
	e, err := b.exec(t, "e", nil, "/app.wasm", "idle")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	ofOld("an exec", int(e.Pid()))
	// A module that has not been compiled yet: the compiler is started too.
	second := container(t, n, img, args("/hello.wasm"), group)
	second.mustCreate(t)
	ofOld("another container", int(second.task.Pid()))
	second.mustStart(t)
	if got := second.exit(t); got != 0 || second.stdout.String() != "hello\n" {
		t.Errorf("%d, %q", got, second.stdout)
	}
	second.delete(t)
	// The new version cleans up what the old one had.
	if err := syscall.Kill(shimPID(t, n, b.ID()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd tells of the exit", func() bool {
		return slices.ContainsFunc(rec.of(b.ID(), 0), func(e any) bool {
			exit, ok := e.(*eventstypes.TaskExit) // not the exec's, which the shim may still have told of
			return ok && exit.ID == b.ID()
		})
	})
	if alive(int(b.task.Pid())) || alive(int(e.Pid())) {
		t.Error("the container is alive")
	}
	e.IO().Cancel()
	e.IO().Close()
	b.remove()
	// And starts shims of its own.
	third, status := run(t, n, img, args("/hello.wasm"))
	if status != 0 || third.stdout.String() != "hello\n" {
		t.Errorf("%d, %q", status, third.stdout)
	}
	second.remove()
	leaves(t, n, before)
}

func TestContract33AShimThatIsKilledTakesItsWholePodAlong(t *testing.T) {
	n := newNode(t, options())
	img := image(t, n, "pod", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("spin.wasm", guest(t, "spin.wasm")), node.Program("busybox", guest(t, "busybox")))
	before := traces(t, n)
	rec := record(t, n)
	other := container(t, n, img, args("/spin.wasm"))
	other.mustCreate(t)
	other.mustStart(t)
	group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "pod"})
	var boxes []*box
	for _, c := range [][]string{{"/app.wasm", "idle"}, {"/spin.wasm"}, {"/busybox", "sleep", "1000"}, {"/app.wasm", "idle"}} {
		b := container(t, n, img, args(c...), group)
		b.mustCreate(t)
		boxes = append(boxes, b)
		if len(boxes) < 4 { // the last one is only created
			b.mustStart(t)
		}
	}
	shim := shimPID(t, n, boxes[0].ID())
	pids := map[string]int{}
	for _, b := range boxes {
		if got := shimPID(t, n, b.ID()); got != shim {
			t.Fatalf("%s is in another shim", b.ID())
		}
		pids[b.ID()] = int(b.task.Pid())
	}
	var execs []*execution
	for i, c := range [][]string{{"/app.wasm", "idle"}, nil, {"/busybox", "sleep", "1000"}} {
		if c == nil {
			continue
		}
		e, err := boxes[i].exec(t, "e", nil, c...)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Start(boxes[i].ctx); err != nil {
			t.Fatal(err)
		}
		execs = append(execs, e)
		pids[fmt.Sprint("exec in ", i)] = int(e.Pid())
	}
	began := time.Now()
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, b := range boxes {
		eventually(t, "containerd tells of the exit", func() bool {
			for _, e := range rec.of(b.ID(), 0) {
				if e, ok := e.(*eventstypes.TaskExit); ok && e.ID == b.ID() {
					if e.ExitStatus != 137 || int(e.Pid) != pids[b.ID()] {
						t.Errorf("exit %v, want 137 of %d", e, pids[b.ID()])
					}
					return true
				}
			}
			return false
		})
	}
	// `delete` has 5 s for each; together they take less.
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	for what, pid := range pids {
		if alive(pid) {
			t.Errorf("%s is alive", what)
		}
	}
	if !alive(int(other.task.Pid())) {
		t.Error("the container of another shim is dead")
	}
	for _, e := range execs {
		e.IO().Cancel()
		e.IO().Close()
	}
	for _, b := range append(boxes, other) {
		b.remove()
	}
	leaves(t, n, before)
}

func TestContract33AProcessThatIsKilledFromOutside(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	rec := record(t, n)
	b := idle(t, n)
	e, err := b.exec(t, "e", nil, "/spin.wasm")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(e.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := e.finish(t, b.ctx); got != 137 {
		t.Errorf("exec: exit status %d", got)
	}
	if s, err := b.task.Status(b.ctx); err != nil || s.Status != containerd.Running {
		t.Errorf("the container is %v, %v", s.Status, err)
	}
	// Now the first process, an exec beside it.
	if e, err = b.exec(t, "f", nil, "/spin.wasm"); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(b.task.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := b.exit(t); got != 137 {
		t.Errorf("exit status %d", got)
	}
	if got := e.finish(t, b.ctx); got != 137 {
		t.Errorf("exec: exit status %d", got)
	}
	b.delete(t)
	events := rec.whole(t, b.ID())
	if got, want := names(events), []string{"create", "start", "exec-added", "exec-started", "exit", "exec-added", "exec-started", "exit", "exit", "delete"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	for _, s := range checkOrder(events, b.ID()) {
		t.Error(s)
	}
	b.remove()
	leaves(t, n, before)
}

func TestContract34TwoHundredTasks(t *testing.T) {
	n := newNode(t, options())
	img := image(t, n, "many", node.Regular("app.wasm", guest(t, "hello.wasm")), node.Regular("spin.wasm", guest(t, "spin.wasm")), node.Program("busybox", guest(t, "busybox")))
	run(t, n, img, args("/app.wasm")) // compiled
	before := traces(t, n)
	next := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range next {
				if err := oneOfMany(t, n, img, i); err != nil {
					t.Errorf("task %d: %v", i, err)
				}
			}
		})
	}
	for i := range 200 {
		next <- i
	}
	close(next)
	wg.Wait()
	leaves(t, n, before)
	for _, topic := range []string{"panic", "DATA RACE", "clean up after", "remove cgroup", "unmount root"} {
		if strings.Contains(n.Log(), topic) {
			t.Errorf("the log has %q", topic)
		}
	}
}

// oneOfMany sees a task through one of the lives there are, and looks for what it
// has left the moment Delete has returned.
func oneOfMany(t *testing.T, n *node.Node, img containerd.Image, i int) error {
	spins := []oci.SpecOpts{args("/spin.wasm")}
	b := container(t, n, img, map[int][]oci.SpecOpts{
		0: {args("/app.wasm")}, 1: spins, 2: spins, 3: spins, 4: {args("/busybox", "sleep", "1000")},
	}[i%5]...)
	if err := b.create(); err != nil {
		return err
	}
	bootstrap, err := os.ReadFile(filepath.Join(n.Bundle(b.ID()), "bootstrap.json"))
	if err != nil {
		return err
	}
	pids := []int{int(b.task.Pid())}
	exit, err := b.task.Wait(b.ctx)
	if err != nil {
		return err
	}
	if i%5 != 3 { // that one is deleted without a start
		if err := b.task.Start(b.ctx); err != nil {
			return err
		}
	}
	if i%10 == 2 {
		e, err := b.exec(t, "e", nil, "/spin.wasm")
		if err != nil {
			return err
		}
		if err := e.Start(b.ctx); err != nil {
			return err
		}
		pids = append(pids, int(e.Pid()))
		defer func() { e.IO().Cancel(); e.IO().Close() }()
	}
	switch i % 5 {
	case 1, 4:
		err = b.task.Kill(b.ctx, syscall.SIGKILL)
	case 2:
		err = b.task.Kill(b.ctx, syscall.SIGTERM)
	}
	if err != nil {
		return err
	}
	if i%5 != 3 {
		if s := <-exit; s.Error() != nil {
			return s.Error()
		}
		_, err = b.task.Delete(b.ctx)
	} else { // containerd's client refuses
		_, err = n.Client.TaskService().Delete(b.ctx, &tasks.DeleteTaskRequest{ContainerID: b.ID()})
		b.task.IO().Cancel()
		err = errors.Join(err, b.task.IO().Close())
	}
	if err != nil {
		return err
	}
	// No sleep.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var left []error
	if strings.Contains(string(mounts), "/"+b.ID()+"/") {
		left = append(left, errors.New("left a mount"))
	}
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/" + node.Namespace + "/" + b.ID(), "/sys/fs/cgroup/" + node.Namespace + "/" + b.ID(),
		"/run/containerd/runc/" + node.Namespace + "/" + b.ID(), n.Bundle(b.ID()), filepath.Join(n.Dir, "fifo/*", b.ID()+"-*"),
		regexp.MustCompile(`/[^"]*/s/[0-9a-f]+`).FindString(string(bootstrap)),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			if i%10 == 2 && strings.Contains(f, "/fifo/") && strings.Contains(f, "/e-") {
				continue // the exec's are its client's
			}
			left = append(left, errors.New("left "+f))
		}
	}
	for _, pid := range pids {
		if alive(pid) {
			left = append(left, fmt.Errorf("left process %d", pid))
		}
	}
	return errors.Join(append(left, b.Delete(b.ctx, containerd.WithSnapshotCleanup))...)
}

// A size is what a shim holds.
type size struct {
	descriptors, goroutines, threads int
	memory                           int // KiB that are its own
}

func (p *rawPod) size(t *testing.T) size {
	t.Helper()
	var s size
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	s.descriptors = len(fds)
	if s.threads, err = strconv.Atoi(statusField(t, uint32(p.pid), "Threads")); err != nil {
		t.Fatal(err)
	}
	// The shim's own way to show its goroutines.
	const begin, end = "=== BEGIN goroutine stack dump ===", "=== END goroutine stack dump ==="
	log := filepath.Join(p.bundle, "log")
	old, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the shim shows its stacks", func() bool {
		data, err := os.ReadFile(log)
		if err != nil || len(data) < len(old) {
			return false
		}
		dump := string(data[len(old):])
		_, after, ok := strings.Cut(dump, begin)
		if !ok || !strings.Contains(after, end) {
			return false
		}
		s.goroutines = len(regexp.MustCompile(`goroutine \d+ [^\[]*\[`).FindAllString(after, -1))
		return true
	})
	for _, line := range strings.Split(procFile(t, uint32(p.pid), "smaps_rollup"), "\n") {
		if v, ok := strings.CutPrefix(line, "Private_Dirty:"); ok {
			if s.memory, err = strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(v, "kB"))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func TestContract34AShimThatLivesLongDoesNotGrow(t *testing.T) {
	// 8 MiB: what the collector may leave between two collections. A leak of a
	// pipe's buffer in each round would be 12.
	livesLong(t, useNode(t), size{memory: heapKiB(t, 8<<10)})
}

// livesLong has a shim see to many execs and containers, after which it may have
// grown by so much.
func livesLong(t *testing.T, n *node.Node, growth size) {
	t.Helper()
	before := traces(t, n)
	p := newRawPod(t, n)
	first := p.member(t, "hello.wasm")
	if err := os.WriteFile(filepath.Join(first.bundle, "rootfs", "spin.wasm"), guest(t, "spin.wasm"), 0o644); err != nil {
		t.Fatal(err)
	}
	first.mustRun(t)
	// It only has to be there: spinning would take a processor.
	stay := p.member(t, "probe.wasm", args("/app.wasm", "idle"))
	// An exec of a module of this size is over soon.
	if err := os.WriteFile(filepath.Join(stay.bundle, "rootfs", "exit.wasm"), guest(t, "exit.wasm"), 0o644); err != nil {
		t.Fatal(err)
	}
	stay.mustRun(t)
	sidecar := p.linux(t, "while :; do /busybox sleep 1000; done").mustRun(t)
	cycle := func(rounds int) {
		t.Helper()
		next := make(chan int)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i := range next {
					if status, err := stay.runExec(fmt.Sprint("e", i), "/exit.wasm"); err != nil || status != 255 {
						t.Errorf("exec %d: %d, %v", i, status, err)
					}
					if err := stay.exec(fmt.Sprint("bad", i), "/none.wasm"); err != nil {
						t.Error(err)
					}
					if err := stay.start(fmt.Sprint("bad", i)); !errdefs.IsInvalidArgument(err) {
						t.Errorf("start of nothing: %v", err)
					}
					if err := stay.delete(fmt.Sprint("bad", i)); err != nil {
						t.Error(err)
					}
					m := p.member(t, "hello.wasm")
					m.stdio = readFifos(t)
					if i%16 == 1 { // one whose output stays where it is
						m.stdio = fifos(t)
					}
					if status, err := m.run(); err != nil || status != 0 {
						t.Errorf("container %d: %d, %v", i, status, err)
					}
					if bad := p.member(t, "nostart.wasm"); i%4 == 0 && bad.create() == nil {
						t.Error("created")
					}
					if i%8 == 0 {
						if status, err := sidecar.runExec(fmt.Sprint("e", i), "/busybox", "sh", "-c", "exit 4"); err != nil || status != 4 {
							t.Errorf("exec %d in a Linux container: %d, %v", i, status, err)
						}
					}
					if i%16 == 0 {
						if status, err := p.linux(t, "exit 5").run(); err != nil || status != 5 {
							t.Errorf("Linux container %d: %d, %v", i, status, err)
						}
					}
				}
			})
		}
		for i := range rounds {
			next <- i
		}
		close(next)
		wg.Wait()
	}
	cycle(20)
	small := p.size(t)
	cycle(200)
	var big size
	// A goroutine that has answered may be about to end.
	soon(func() bool {
		big = p.size(t)
		return big.descriptors <= small.descriptors+growth.descriptors && big.goroutines <= small.goroutines+growth.goroutines
	})
	t.Logf("before %+v, after %+v", small, big)
	if big.descriptors > small.descriptors+growth.descriptors || big.goroutines > small.goroutines+growth.goroutines {
		t.Errorf("was %+v, is %+v after 200 execs and containers", small, big)
	}
	if big.memory > small.memory+growth.memory {
		t.Errorf("%d KiB, were %d before 200 execs and containers", big.memory, small.memory)
	}
	if _, err := first.wait(""); err != nil {
		t.Error(err)
	}
	if err := first.delete(""); err != nil {
		t.Error(err)
	}
	stay.end(t)
	sidecar.end(t)
	p.close(t)
	leaves(t, n, before)
}
