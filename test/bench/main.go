// Command bench runs this shim and containerd's own by turns, in one run on one
// containerd, and prints what each step costs and what a running container
// takes. Only the ratios mean anything: the machine is what it is.
//
// Both run the same specification: namespaces, limits, snapshotter. The Linux
// container runs a static C program that does what the module does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// A contender is a runtime with a program for it.
type contender struct {
	name, runtime string
	image         containerd.Image
	args, idle    []string
	pod           string // whose shim to use; its own where empty
}

var steps = []string{"create", "start", "exit", "delete", "total"}

func main() {
	log.SetFlags(0)
	bin := flag.String("bin", "bin", "directory with containerd, runc and the shims")
	rounds := flag.Int("n", 60, "containers of each kind, one at a time")
	tasks := flag.Int("tasks", 60, "containers of each kind for each throughput figure")
	guests := flag.String("guests", "bin/guests", "directory with the programs to run")
	only := flag.String("only", "", "run only the contenders whose name contains this, beside the first")
	traced := flag.Int("telemetry", 100, "containers of each kind to see what telemetry costs")
	what := flag.String("run", "", "work: only the throughput of guests")
	workRounds := flag.Int("work-rounds", 5, "how often each piece of work is done")
	collect := flag.Bool("collect", false, "be the collector, until the standard input ends")
	flag.Parse()
	if *collect {
		if err := serve(); err != nil {
			log.Fatal("bench: collector: ", err)
		}
		return
	}
	if err := run(context.Background(), *bin, *guests, *rounds, *tasks, *traced, *only, *what, *workRounds); err != nil {
		log.Fatal("bench: ", err)
	}
}

// install copies the programs that are timed into a directory of their own, as an
// installation does. What the linker has written is in the page cache in small
// pieces: every process that is started of it takes a quarter longer.
func install(bin string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "bench"); err != nil {
		return "", err
	}
	const shim = "containerd-shim-wazero-v1"
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc", shim, filepath.Join("nowalls", shim), "wazero"} {
		data, e := os.ReadFile(filepath.Join(bin, name))
		if e == nil {
			e = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700)
		}
		if e == nil {
			e = os.WriteFile(filepath.Join(dir, name), data, 0o755) // also for whom a container runs as
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

func run(ctx context.Context, bin, guests string, rounds, tasks, traced int, only, what string, workRounds int) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	if bin, err = install(bin); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bin)) }()
	host, err := newHostFile()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.remove()) }()
	n, err := node.Start(ctx, node.Options{Bin: bin, Shim: bin, Env: []string{host.env()}})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			log.Print(n.Log())
		}
		err = errors.Join(err, n.Close())
	}()
	ctx = n.Context(ctx)
	if what == "work" {
		return work(ctx, n, bin, guests, workRounds, only)
	}
	image := func(name, file string) containerd.Image {
		data, e := os.ReadFile(filepath.Join(guests, file))
		if e != nil {
			err = errors.Join(err, e)
			return nil
		}
		f := node.Regular("app", data)
		f.Mode = 0o755
		i, e := n.Image(ctx, name, ocispec.ImageConfig{}, f)
		err = errors.Join(err, e)
		return i
	}
	contenders := []contender{
		{"runc, static C", "io.containerd.runc.v2", image("c", "hello-static"), []string{"/app"}, []string{"/app", "idle"}, ""},
		{"wazero, tiny module", node.Runtime, image("wat", "hello.wasm"), []string{"/app"}, nil, ""},
		{"wazero, C module", node.Runtime, image("cwasm", "hello-c.wasm"), []string{"/app"}, []string{"/app", "idle"}, ""},
		{"wazero, Go module", node.Runtime, image("gowasm", "probe.wasm"), []string{"/app", "print", "hello"}, []string{"/app", "idle"}, ""},
	}
	// The same program without its walls. A runtime may be named by its file.
	walled := []contender{contenders[1]}
	bare := contenders[1]
	bare.name, bare.runtime = "the same, no walls", filepath.Join(bin, "nowalls", "containerd-shim-wazero-v1")
	walled = append(walled, bare)
	if err != nil {
		return err
	}
	contenders = slices.DeleteFunc(contenders, func(c contender) bool {
		return c.runtime == node.Runtime && !strings.Contains(c.name, only)
	})
	fmt.Printf("%d containers of each kind, by turns; milliseconds, p50 (p95), and p50 over runc's\n\n", rounds)
	if err := byTurns(ctx, n.Client, contenders, rounds, "b"); err != nil {
		return err
	}
	fmt.Printf("\nthe same for a further container in a running pod, on the pod's shim\n\n")
	for i := range contenders {
		pod, e := startPod(ctx, n.Client, contenders[0], contenders[i].runtime, fmt.Sprintf("pod%d", i))
		if e != nil {
			return fmt.Errorf("pod of %s: %w", contenders[i].name, e)
		}
		defer func() { err = errors.Join(err, pod.end(ctx)) }()
		contenders[i].pod = pod.ID()
	}
	if err := byTurns(ctx, n.Client, contenders, rounds, "s"); err != nil {
		return err
	}
	for i := range contenders {
		contenders[i].pod = ""
	}
	fmt.Printf("\nwhat the walls cost, with them and without\n\n")
	if err := byTurns(ctx, n.Client, walled, rounds, "w"); err != nil {
		return err
	}
	fmt.Printf("\nwhat telemetry costs: %d containers of each kind, by turns; milliseconds, and what it is over none\n\n", traced)
	if err := telemetry(ctx, n.Client, walled[0], host, traced); err != nil {
		return err
	}
	fmt.Printf("\ntasks per second, create to delete, %d each\n\n", tasks)
	for _, parallel := range []int{1, 4} {
		var base float64
		for i, c := range contenders {
			rate, err := throughput(ctx, n.Client, c, tasks, parallel, fmt.Sprintf("p%d-%d", parallel, i))
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if i == 0 {
				base = rate
			}
			fmt.Printf("| %d in parallel | %-20s | %6.1f/s %5.2f |\n", parallel, c.name, rate, rate/base)
		}
	}
	fmt.Printf("\nmemory of one running container, shim and all, KiB\n\n")
	var base float64
	for i, c := range contenders {
		if c.idle == nil {
			continue
		}
		pss, private, err := memory(ctx, n.Client, c, fmt.Sprintf("m%d", i))
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if i == 0 {
			base = float64(pss)
		}
		fmt.Printf("| %-20s | proportional %6d %5.2f | private %6d |\n", c.name, pss, float64(pss)/base, private)
	}
	return nil
}

// byTurns runs containers one at a time and prints what each step took.
func byTurns(ctx context.Context, client *containerd.Client, contenders []contender, rounds int, prefix string) error {
	times := make([]map[string][]time.Duration, len(contenders))
	for i := range times {
		times[i] = map[string][]time.Duration{}
	}
	for round := range rounds + 3 {
		for i, c := range contenders {
			t, err := life(ctx, client, c, fmt.Sprintf("%s%d-%d", prefix, i, round))
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if round < 3 {
				continue // warm: the compile cache, the page cache
			}
			for k, step := range steps {
				times[i][step] = append(times[i][step], t[k])
			}
		}
	}
	fmt.Printf("| %-20s |", "")
	for _, step := range steps {
		fmt.Printf(" %-20s |", step)
	}
	fmt.Println()
	for i, c := range contenders {
		fmt.Printf("| %-20s |", c.name)
		for _, step := range steps {
			p50, p95 := quantile(times[i][step], 0.5), quantile(times[i][step], 0.95)
			fmt.Printf(" %6.1f (%6.1f) %5.2f |", ms(p50), ms(p95), float64(p50)/float64(quantile(times[0][step], 0.5)))
		}
		fmt.Println()
	}
	return nil
}

// A pod is a running container whose shim others are put on, the way CRI does it:
// by a sandbox of the same id.
type pod struct {
	containerd.Container
	task    containerd.Task
	sandbox sandbox.Store
}

// startPod starts a pod whose first container is an idle Linux one.
func startPod(ctx context.Context, client *containerd.Client, pause contender, runtime, id string) (*pod, error) {
	p := &pod{sandbox: client.SandboxStore()}
	if _, err := p.sandbox.Create(ctx, sandbox.Sandbox{ID: id, Runtime: sandbox.RuntimeOpts{Name: runtime}, Sandboxer: "podsandbox"}); err != nil {
		return nil, err
	}
	pause.runtime, pause.pod = runtime, ""
	container, err := pause.create(ctx, client, id, pause.idle)
	if err != nil {
		return nil, err
	}
	p.Container = container
	if p.task, err = container.NewTask(ctx, cio.NullIO); err != nil {
		return nil, err
	}
	return p, p.task.Start(ctx)
}

func (p *pod) end(ctx context.Context) error {
	_, err := p.task.Delete(ctx, containerd.WithProcessKill)
	return errors.Join(err, p.Delete(ctx, containerd.WithSnapshotCleanup), p.sandbox.Delete(ctx, p.ID()))
}

// spec is the same for every contender: containerd's default namespaces and
// mounts, and the limits a pod commonly has.
func (c contender) spec(args []string) containerd.NewContainerOpts {
	return containerd.WithNewSpec(oci.WithImageConfig(c.image), oci.WithProcessArgs(args...),
		oci.WithMemoryLimit(256<<20), oci.WithCPUShares(512), oci.WithCPUCFS(200000, 100000), oci.WithPidsLimit(512))
}

func (c contender) create(ctx context.Context, client *containerd.Client, id string, args []string) (containerd.Container, error) {
	opts := []containerd.NewContainerOpts{
		containerd.WithImage(c.image), containerd.WithNewSnapshot(id, c.image), containerd.WithRuntime(c.runtime, nil), c.spec(args),
	}
	if c.pod != "" {
		opts = append(opts, containerd.WithSandbox(c.pod))
	}
	return client.NewContainer(ctx, id, opts...)
}

// life runs one container and times its steps. Metadata and snapshot are made
// before and removed after: they are the same for all.
func life(ctx context.Context, client *containerd.Client, c contender, id string) (t [5]time.Duration, err error) {
	container, err := c.create(ctx, client, id, c.args)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	began := time.Now()
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		return t, err
	}
	t[0] = time.Since(began)
	exit, err := task.Wait(ctx)
	if err != nil {
		return t, err
	}
	at := time.Now()
	if err := task.Start(ctx); err != nil {
		return t, err
	}
	t[1] = time.Since(at)
	at = time.Now()
	status := <-exit
	t[2] = time.Since(at)
	at = time.Now()
	if _, err := task.Delete(ctx); err != nil {
		return t, err
	}
	t[3] = time.Since(at)
	t[4] = time.Since(began)
	if code, _, err := status.Result(); err != nil || code != 0 {
		return t, fmt.Errorf("exit status %d: %w", code, err)
	}
	return t, nil
}

func throughput(ctx context.Context, client *containerd.Client, c contender, tasks, parallel int, prefix string) (float64, error) {
	work := make(chan int)
	errs := make(chan error, parallel)
	var wg sync.WaitGroup
	began := time.Now()
	for range parallel {
		wg.Go(func() {
			for i := range work {
				if _, err := life(ctx, client, c, fmt.Sprintf("%s-%d", prefix, i)); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for i := range tasks {
		work <- i
	}
	close(work)
	wg.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(tasks) / time.Since(began).Seconds(), nil
	}
}

// memory is the proportional and private memory of all processes of a running
// container, in KiB.
func memory(ctx context.Context, client *containerd.Client, c contender, id string) (pss, private int, err error) {
	container, err := c.create(ctx, client, id, c.idle)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		_, e := task.Delete(ctx, containerd.WithProcessKill)
		err = errors.Join(err, e)
	}()
	if err := task.Start(ctx); err != nil {
		return 0, 0, err
	}
	time.Sleep(2 * time.Second) // let it settle
	// The shim runs in the bundle's directory or is the parent of the task.
	out, err := exec.Command("ps", "-o", "ppid=", "-p", strconv.Itoa(int(task.Pid()))).Output()
	if err != nil {
		return 0, 0, err
	}
	for _, pid := range []string{strings.TrimSpace(string(out)), strconv.Itoa(int(task.Pid()))} {
		rollup, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			return 0, 0, err
		}
		for _, line := range strings.Split(string(rollup), "\n") {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			kib, _ := strconv.Atoi(f[1]) // the first line is not of this form
			switch f[0] {
			case "Pss:":
				pss += kib
			case "Private_Clean:", "Private_Dirty:":
				private += kib
			}
		}
	}
	return pss, private, nil
}

func quantile(d []time.Duration, q float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[int(q*float64(len(d)-1)+0.5)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
