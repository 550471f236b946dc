// Command bench runs this shim and containerd's own by turns, in one run on one
// containerd, and prints what each step costs and what running containers take.
// Only the ratios mean anything: the machine is what it is.
//
// Both run the same specification: namespaces, limits, snapshotter. The Linux
// container runs a static C program that does what the module does.
//
// What it measures are sections, a file for each or for those that belong together.
// All they have measured is written to a file, one JSON value a line, of which
// `bench -write` makes the tables of the documentation.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// A section is a part of the benchmark that can be run alone.
type section struct {
	name  string
	about string
	run   func(context.Context, *bench) error
	table func(*results) string // in Markdown
}

// In the order in which they are run. What is timed comes before what fills the
// machine.
var sections = []section{
	{"start", "create to delete, a shim for each container", start, startTable},
	{"pod", "create to delete of a further container on a pod's shim", pod, podTable},
	{"walls", "what the walls cost", walls, wallsTable},
	{"telemetry", "what telemetry costs", telemetry, telemetryTable},
	{"rate", "tasks per second", rate, rateTable},
	{"work", "throughput of guests, beside wazero's own command and a program under runc", work, workTable},
	{"memory", "memory of running containers, a shim for each, and of a further one in a pod", memory, memoryTable},
	{"idle", "processor time of idle containers", idle, idleTable},
	{"scale", "what a container costs beside few and many others", scale, scaleTable},
	{"podscale", "the same in a pod", podScale, podScaleTable},
	{waterfallSection, "where the time of a start goes", waterfall, waterfallTable},
	{"size", "size of the binary, by module", size, sizeTable},
}

// settings are how much is measured.
type settings struct {
	warm, rounds                    int
	tasks, blocks, containers, pods int
	work                            int
	pieces                          string // of work; all if empty
	nodeCounts, podCounts           []int
	settle, idle                    time.Duration
	traced, beside, telemetry       int
}

// A bench is a run.
type bench struct {
	settings
	*results
	n          *node.Node
	bin        string // the programs that are timed: a copy, see install
	from       string // what they are a copy of
	guests     string
	host       *hostFile
	contenders map[string]contender
	ids        atomic.Int64
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	var s settings
	bin := flag.String("bin", "bin", "directory with containerd, runc and the shims")
	guests := flag.String("guests", "bin/guests", "directory with the programs to run")
	only := flag.String("run", "", "run only these `sections`, with commas between them:\n"+list())
	out := flag.String("o", "", "write what was measured to this `file` as well, as JSON lines")
	flag.IntVar(&s.warm, "warm", 3, "rounds that are not counted: for the page cache")
	flag.IntVar(&s.rounds, "n", 60, "containers of each kind, one at a time")
	flag.IntVar(&s.tasks, "tasks", 40, "containers of each kind in each block of the throughput")
	flag.IntVar(&s.blocks, "blocks", 5, "blocks of each kind for the throughput, by turns")
	flag.IntVar(&s.containers, "containers", 100, "running containers of each kind for memory and idle processor time")
	flag.IntVar(&s.pods, "pods", 5, "pods of each kind to see what a further container takes")
	flag.Func("counts", "`numbers` of containers on the node for the section scale (default 1,10,100,500)", numbers(&s.nodeCounts, 1, 10, 100, 500))
	flag.Func("podcounts", "`numbers` of containers in a pod for the section podscale (default 1,10,50)", numbers(&s.podCounts, 1, 10, 50))
	flag.DurationVar(&s.settle, "settle", 3*time.Second, "how long to let running containers settle")
	flag.DurationVar(&s.idle, "idle", 2*time.Minute, "how long to watch idle containers")
	flag.IntVar(&s.traced, "traced", 40, "traced containers of each kind for the waterfall")
	flag.IntVar(&s.beside, "beside", 0, "idle containers that run beside the traced ones")
	flag.IntVar(&s.telemetry, "telemetry", 100, "containers of each kind to see what telemetry costs")
	flag.IntVar(&s.work, "work", 5, "how often each piece of work is done by each")
	flag.StringVar(&s.pieces, "pieces", "", "run only these `pieces` of work, with commas between them")
	document := flag.String("write", "", "run nothing: put the tables into these `files`, of the output files that are the arguments")
	collect := flag.Bool("collect", false, "be the collector, until the standard input ends")
	flag.Parse()
	var err error
	switch {
	case *collect:
		err = serve()
	case *document != "":
		err = writeDocuments(strings.Split(*document, ","), flag.Args())
	case flag.NArg() > 0:
		err = fmt.Errorf("%q: there are no arguments but with -write", flag.Args())
	default:
		signal.Ignore(syscall.SIGPIPE) // whoever reads may leave; the containers are ended all the same
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = report(ctx, s, *bin, *guests, *only, *out)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func list() string {
	var b strings.Builder
	for _, s := range sections {
		fmt.Fprintf(&b, "  %-10s %s\n", s.name, s.about)
	}
	return b.String()
}

// numbers is a flag that is a list of them.
func numbers(to *[]int, otherwise ...int) func(string) error {
	*to = otherwise
	return func(text string) error {
		*to = nil
		for _, word := range strings.Split(text, ",") {
			var n int
			if _, err := fmt.Sscan(word, &n); err != nil || n < 1 {
				return fmt.Errorf("%q is no number of containers", word)
			}
			*to = append(*to, n)
		}
		if !slices.IsSorted(*to) {
			return errors.New("each has to be more than the one before it")
		}
		return nil
	}
}

// choose are the sections of the given names, all if there are none.
func choose(names string) (chosen []section, err error) {
	if names == "" {
		return sections, nil
	}
	for _, name := range strings.Split(names, ",") {
		i := slices.IndexFunc(sections, func(s section) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no section %q; there are\n%s", name, list())
		}
		chosen = append(chosen, sections[i])
	}
	return chosen, nil
}

// report runs sections, prints their tables as they come, and the targets.
func report(ctx context.Context, s settings, bin, guests, only, out string) error {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	all, err := run(ctx, s, bin, guests, chosen, func(s section, r *results, took time.Duration) {
		log.Printf("%s took %.0f s", s.name, took.Seconds())
		fmt.Printf("## %s\n\n%s\n", s.name, s.table(r))
	})
	if err != nil {
		return err
	}
	if targets := targetTable(all); targets != "" {
		fmt.Printf("## targets\n\n%s\n%s", targets, machineTable(all))
	}
	if out != "" {
		return all.save(out)
	}
	return nil
}

// run runs sections, and calls done after each.
func run(ctx context.Context, s settings, bin, guests string, chosen []section, done func(section, *results, time.Duration)) (_ *results, err error) {
	if bin, err = filepath.Abs(bin); err != nil {
		return nil, err
	}
	others, err := busy()
	if err != nil {
		return nil, err
	}
	if others > 0.1 {
		log.Printf("others use %.0f %% of the processors: what this run says is noise in part", 100*others)
	}
	b := &bench{settings: s, results: &results{}, from: bin, guests: guests}
	if b.bin, err = install(bin); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.bin)) }()
	if b.host, err = newHostFile(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.host.remove()) }()
	if b.n, err = node.Start(ctx, node.Options{Bin: b.bin, Shim: b.bin, Env: []string{b.host.env()}}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			log.Print(b.n.Log())
		}
		dir := b.n.Dir
		err = errors.Join(err, b.n.Close(), gone(dir))
	}()
	ctx = b.n.Context(ctx)
	if b.contenders, err = b.enter(ctx, b.n); err != nil {
		return nil, err
	}
	if b.Machine, err = thisMachine(b, others); err != nil {
		return nil, err
	}
	for _, c := range b.contenders { // compiles its module
		if _, err := life(ctx, b.n.Client, c, b.id()); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for _, s := range chosen {
		began := time.Now()
		if err := s.run(ctx, b); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		if err := b.clean(ctx); err != nil {
			return nil, fmt.Errorf("%s has left something behind: %w", s.name, err)
		}
		if done != nil {
			done(s, b.results, time.Since(began))
		}
	}
	return b.results, nil
}

// id is one that no other container of the run has.
func (b *bench) id() string { return fmt.Sprintf("b%d", b.ids.Add(1)) }

// install copies the programs that are timed into a directory of their own, as an
// installation does. What the linker has written is in the page cache in small
// pieces: every process that is started of it takes a quarter longer.
func install(bin string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "bench"); err != nil {
		return "", err
	}
	always := []string{"containerd", runcShim, "runc", wazeroShim}
	for _, name := range append(always, bareShim, "wazero") {
		data, e := os.ReadFile(filepath.Join(bin, name))
		if errors.Is(e, fs.ErrNotExist) && !slices.Contains(always, name) {
			continue // a section that needs it will say so
		}
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

// The shims.
const (
	runcShim   = "containerd-shim-runc-v2"
	wazeroShim = "containerd-shim-wazero-v1"
)

// bareShim is the one without walls.
var bareShim = filepath.Join("nowalls", wazeroShim)

// enter makes the images of those who run against each other.
func (b *bench) enter(ctx context.Context, n *node.Node) (map[string]contender, error) {
	runc, wazero := []string{filepath.Join(b.bin, runcShim)}, []string{filepath.Join(b.bin, wazeroShim)}
	all := map[string]contender{}
	for _, e := range []struct {
		name, file, runtime string
		idle                []string
		programs            []string
	}{
		{runcC, "hello-static", "io.containerd.runc.v2", []string{"/app", "idle"}, runc},
		{tiny, "hello.wasm", node.Runtime, nil, wazero},
		{wasmC, "hello-c.wasm", node.Runtime, []string{"/app", "idle"}, wazero},
		{wasmGo, "hello-go.wasm", node.Runtime, []string{"/app", "idle"}, wazero},
	} {
		data, err := os.ReadFile(filepath.Join(b.guests, e.file))
		if err != nil {
			return nil, err
		}
		image, err := n.Image(ctx, e.file, ocispec.ImageConfig{}, node.Program("app", data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		all[e.name] = contender{name: e.name, runtime: e.runtime, image: image, args: []string{"/app"}, idle: e.idle, programs: e.programs}
	}
	return all, nil
}

// those are the contenders of the given names.
func (b *bench) those(names ...string) (all []contender) {
	for _, name := range names {
		all = append(all, b.contenders[name])
	}
	return all
}

// clean tells what containers have left behind, or are still there. Shims may take
// a moment to end: they do that after their last reply.
func (b *bench) clean(ctx context.Context) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := b.left(ctx)
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (b *bench) left(ctx context.Context) error {
	var errs []error
	containers, err := b.n.Client.Containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range containers {
		errs = append(errs, fmt.Errorf("container %s", c.ID()))
	}
	programs, err := filepath.Glob(b.bin + "/*shim*")
	if err != nil {
		return err
	}
	without, err := filepath.Glob(filepath.Join(b.bin, bareShim))
	if err != nil {
		return err
	}
	running, err := families(slices.Concat(programs, without, []string{filepath.Join(b.bin, "runc")})...)
	if err != nil {
		return err
	}
	for _, f := range running {
		errs = append(errs, fmt.Errorf("processes %v", f))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], b.n.Dir+"/state/") {
			errs = append(errs, fmt.Errorf("mount %s", f[4]))
		}
	}
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/" + node.Namespace + "/*/", "/sys/fs/cgroup/" + node.Namespace + "/*/", "/run/containerd/runc/" + node.Namespace + "/*",
		b.n.SocketDir() + "/*", b.n.Dir + "/fifo/*", b.n.Bundle("*"),
	} {
		paths, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, p := range paths {
			errs = append(errs, errors.New(p))
		}
	}
	return errors.Join(errs...)
}

// gone removes the cgroups that contained those of all containers, which runc and
// containerd leave, and tells what else of a node is still there.
func gone(dir string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + node.Namespace, "/sys/fs/cgroup/" + node.Namespace, "/run/containerd/runc/" + node.Namespace} {
		paths, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, p := range paths {
			errs = append(errs, os.Remove(p)) // fails if there is one in it
		}
	}
	if _, err := os.Stat(dir); err == nil {
		errs = append(errs, fmt.Errorf("%s is still there", dir))
	}
	return errors.Join(errs...)
}
