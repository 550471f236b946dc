package shim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/image"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
)

const usage = `usage:
  containerd-shim-wazero-v1 compile [flags] IMAGE...   compile the modules of images, before there is a container
  containerd-shim-wazero-v1 cache list [flags]         list what has been compiled
  containerd-shim-wazero-v1 cache clear [flags]        remove it, but for what is in use

`

// Statuses that a command exits with.
const (
	statusOK = iota
	statusFailed
	statusUsage
)

// Command runs a command of the program for who runs a node, and returns the status to
// exit with: 0; 1 when something went wrong, which has been said; 2 for a wrong use.
func Command(args []string, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	c := &command{out: out, flags: flag.NewFlagSet(strings.Join(args[:min(len(args), 2)], " "), flag.ContinueOnError)}
	run, rest := c.runCompile, args[1:]
	if args[0] == "cache" {
		run, rest = nil, nil
		if len(args) > 1 {
			rest = args[2:]
			switch args[1] {
			case "list":
				run = c.runList
			case "clear":
				run = c.runClear
			}
		}
	}
	c.flags.SetOutput(errs)
	c.flags.Usage = func() {
		fmt.Fprint(errs, usage)
		c.flags.PrintDefaults()
	}
	if run == nil {
		c.flags.Usage()
		return statusUsage
	}
	err := run(ctx, rest)
	var wrong *usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return statusOK
	case errors.As(err, &wrong):
		if wrong.reason != "" { // else package flag has said it
			fmt.Fprintf(errs, "%s\n", wrong.reason)
			c.flags.Usage()
		}
		return statusUsage
	}
	var status *exec.ExitError
	if errors.As(err, &status) && status.ExitCode() > 0 { // has said why
		return status.ExitCode()
	}
	fmt.Fprintf(errs, "%s: %v\n", runtimeBinary, err)
	return statusFailed
}

// A usageError is what is wrong with a command line.
type usageError struct{ reason string }

func (e *usageError) Error() string { return e.reason }

type command struct {
	out       io.Writer
	flags     *flag.FlagSet
	address   string
	namespace string
	root      string
}

// environment is the value of a variable that containerd's other clients know.
func environment(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (c *command) parse(args []string) error {
	c.flags.StringVar(&c.address, "address", environment("CONTAINERD_ADDRESS", defaults.DefaultAddress), "containerd's `socket` (CONTAINERD_ADDRESS)")
	c.flags.StringVar(&c.root, "root", "", "containerd's root `directory` (default: what containerd says)")
	err := c.flags.Parse(args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		return &usageError{}
	}
	if err == nil && os.Geteuid() != 0 {
		return errors.New("needs root: what has been compiled is root's alone")
	}
	return err
}

// state is [stateDir] for one who has no bundle.
func (c *command) state(ctx context.Context) (string, error) {
	root := c.root
	if root == "" {
		client, err := image.NewClient(c.address, c.namespace)
		if err != nil {
			return "", err
		}
		defer client.Close()
		if root, err = client.Root(ctx); err != nil {
			return "", fmt.Errorf("ask containerd for its root (-root names it): %w", err)
		}
	}
	if !filepath.IsAbs(root) {
		return "", &usageError{fmt.Sprintf("-root %s: not an absolute path", root)}
	}
	return filepath.Join(root, RuntimeName), nil
}

// cache is the compile cache of the containerd.
func (c *command) cache(ctx context.Context) (*module.Cache, error) {
	state, err := c.state(ctx)
	if err != nil {
		return nil, err
	}
	return newCache(state), nil
}

// entryJSON is an entry as `cache list -json` prints it, and `cache clear -json`.
type entryJSON struct {
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // bytes
	Used    time.Time `json:"used"`
	Engine  string    `json:"engine"`
	Current bool      `json:"current"`
	Path    string    `json:"path"`
	Removed *bool     `json:"removed,omitempty"`
}

func toJSON(c *module.Cache, e module.EntryInfo) entryJSON {
	return entryJSON{Digest: e.Digest, Size: e.Size, Used: e.Used, Engine: e.Engine, Current: e.Current, Path: filepath.Join(c.Path(), e.Name)}
}

func (c *command) print(entries []entryJSON, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		return e.Encode(append([]entryJSON{}, entries...))
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DIGEST\tSIZE\tLAST USE\tSTATE")
	for _, e := range entries {
		used, state := "unknown", "current"
		if !e.Used.IsZero() {
			used = units.HumanDuration(time.Since(e.Used)) + " ago"
		}
		if !e.Current {
			state = "of another version or processor"
		}
		if e.Removed != nil {
			state = map[bool]string{true: "removed", false: "in use"}[*e.Removed]
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.Digest, units.BytesSize(float64(e.Size)), used, state)
	}
	return w.Flush()
}

func (c *command) runList(ctx context.Context, args []string) error {
	asJSON := c.flags.Bool("json", false, "print JSON")
	if err := c.parse(args); err != nil {
		return err
	}
	if c.flags.NArg() > 0 {
		return &usageError{fmt.Sprintf("cache list: what is %q?", c.flags.Arg(0))}
	}
	cache, err := c.cache(ctx)
	if err != nil {
		return err
	}
	all, err := cache.List()
	if err != nil {
		return err
	}
	var entries []entryJSON
	for _, e := range all {
		entries = append(entries, toJSON(cache, e))
	}
	return c.print(entries, *asJSON)
}

func (c *command) runClear(ctx context.Context, args []string) error {
	asJSON := c.flags.Bool("json", false, "print JSON")
	unused := c.flags.Duration("unused-for", 0, "only what has not been used for this `time`")
	stale := c.flags.Bool("stale", false, "only what is of another version of the engine or another processor")
	if err := c.parse(args); err != nil {
		return err
	}
	digests := c.flags.Args()
	for _, d := range digests {
		if hex, ok := strings.CutPrefix(d, "sha256:"); !ok || len(hex) != 64 {
			return &usageError{fmt.Sprintf("cache clear: %q is not the digest of a module", d)}
		}
	}
	cache, err := c.cache(ctx)
	if err != nil {
		return err
	}
	removed, busy, err := cache.Clear(ctx, func(e module.EntryInfo) bool {
		return time.Since(e.Used) < *unused || *stale && e.Current || len(digests) > 0 && !slices.Contains(digests, e.Digest)
	})
	if err != nil {
		return err
	}
	var entries []entryJSON
	for _, list := range [][]module.EntryInfo{removed, busy} {
		gone := len(entries) < len(removed)
		for _, e := range list {
			j := toJSON(cache, e)
			j.Removed = &gone
			entries = append(entries, j)
		}
	}
	if err := c.print(entries, *asJSON); err != nil {
		return err
	}
	if len(busy) > 0 {
		return fmt.Errorf("%d entries are in use by containers that are being created", len(busy))
	}
	return nil
}

// ownMounts says in the environment that the process has a mount namespace of its own.
const ownMounts = "CONTAINERD_SHIM_WAZERO_OWN_MOUNTS"

// runCompile is the compile command. It runs in a mount namespace of its own: whatever ends
// it, no mount is left.
func (c *command) runCompile(ctx context.Context, args []string) error {
	snapshotter := c.flags.String("snapshotter", environment("CONTAINERD_SNAPSHOTTER", defaults.DefaultSnapshotter), "`name` of the snapshotter that images are unpacked for (CONTAINERD_SNAPSHOTTER)")
	entry := c.flags.String("entrypoint", "", "the `path` of the module in the image, where a container will name another than its image does")
	c.flags.StringVar(&c.namespace, "namespace", environment("CONTAINERD_NAMESPACE", "default"), "containerd's `namespace` with the images; Kubernetes' is k8s.io (CONTAINERD_NAMESPACE)")
	if err := c.parse(args); err != nil {
		return err
	}
	if c.flags.NArg() == 0 {
		return &usageError{"compile: no image is named"}
	}
	if os.Getenv(ownMounts) == "" {
		runtime.LockOSThread() // whose end the other's is
		defer runtime.UnlockOSThread()
		// By its path: what /proc/self/exe leads to is in this mount namespace.
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, self, append([]string{"compile"}, args...)...)
		cmd.Args[0] = runtimeBinary
		cmd.Env = append(os.Environ(), ownMounts+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, c.out, c.flags.Output()
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
		return cmd.Run()
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	client, err := image.NewClient(c.address, c.namespace)
	if err != nil {
		return err
	}
	defer client.Close()
	state, err := c.state(ctx)
	if err != nil {
		return err
	}
	defer startReaper()()
	stage, err := newStage(state)
	if err != nil {
		return err
	}
	defer stage.Close()
	p := &precompiler{client: client, cache: newCache(state), compiler: newCompiler(stage, state), state: state, snapshotter: *snapshotter, entry: *entry, out: c.out}
	var failed []error
	for _, name := range c.flags.Args() {
		if err := p.compile(ctx, name); err != nil {
			failed = append(failed, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}

// startReaper does for the reaper of children what package shim does in a shim.
func startReaper() (stop func()) {
	ended := make(chan os.Signal, 32)
	signal.Notify(ended, unix.SIGCHLD)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range ended {
			_ = reaper.Reap() // fails when there are none
		}
	}()
	return func() {
		signal.Stop(ended)
		close(ended)
		<-done
	}
}

// A precompiler compiles the modules of images.
type precompiler struct {
	client      *image.Client
	cache       *module.Cache
	compiler    *compiler
	state       string
	snapshotter string
	entry       string
	out         io.Writer
}

func (p *precompiler) compile(ctx context.Context, name string) error {
	modules, err := p.client.Named(ctx, name)
	if errors.Is(err, image.ErrNoArtifact) {
		return p.compileFiles(ctx, name)
	}
	if err != nil {
		return err
	}
	for _, m := range modules {
		id := module.Identity{Digest: m.Digest.String(), Size: m.Size}
		err := p.get(ctx, name, id, func(ctx context.Context) (*os.File, error) {
			f, err := p.client.Open(ctx, m, p.state)
			if err == nil {
				if err = module.Check(f); err != nil {
					f.Close()
				}
			}
			return f, err
		})
		if err != nil {
			return fmt.Errorf("image %s: layer %s: %w", name, m.Digest, err)
		}
	}
	return nil
}

// compileFiles compiles what the entry points of an image with a root file system name.
func (p *precompiler) compileFiles(ctx context.Context, name string) error {
	images, err := p.client.Files(ctx, name)
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range images {
		if err = p.compileFile(ctx, name, i); err == nil {
			return nil
		}
		errs = append(errs, err) // of another platform it may not be unpacked
	}
	return fmt.Errorf("image %s: %w", name, errors.Join(errs...))
}

func (p *precompiler) compileFile(ctx context.Context, name string, i *image.Files) (err error) {
	spec := &specs.Process{Args: slices.Concat(i.Config.Entrypoint, i.Config.Cmd), Env: i.Config.Env, Cwd: i.Config.WorkingDir}
	if p.entry != "" {
		spec.Args = []string{p.entry}
	}
	if spec.Cwd == "" {
		spec.Cwd = "/"
	}
	if len(spec.Args) == 0 {
		return errors.New("names no entry point: -entrypoint does")
	}
	mounts, release, err := p.client.View(ctx, p.snapshotter, i.Parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	dir := filepath.Join(runDir, "view")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer os.Remove(dir) // or else it is somebody else's
	if err := mount.All(mounts, dir); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { err = errors.Join(err, mount.UnmountRecursive(dir, unix.UMOUNT_NOFOLLOW)) }()
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	open := func(path string, flags int) (*os.File, error) { return sandbox.OpenInRoot(int(root.Fd()), path, flags) }
	entry, f, err := findEntry(ctx, open, spec)
	if err != nil {
		return err
	}
	defer f.Close()
	if err = module.Check(f); err == nil {
		var id module.Identity
		if id, err = module.Identify(f); err == nil {
			err = p.get(ctx, name, id, func(context.Context) (*os.File, error) { return open(entry.Path, os.O_RDONLY) })
		}
	}
	if err != nil {
		return fmt.Errorf("entry point %s: %w", entry, err)
	}
	return nil
}

// get has a module in the cache, and says so.
func (p *precompiler) get(ctx context.Context, name string, id module.Identity, open module.Opener) error {
	if id.Size > module.MaxSize {
		return fmt.Errorf("it has %d bytes: %d are the most", id.Size, int64(module.MaxSize))
	}
	began := time.Now()
	unusable := p.cache.Tell
	var bypassed error
	p.cache.Tell = func(ctx context.Context, e module.Event) {
		if unusable(ctx, e); e.Kind == module.Unusable {
			bypassed = e.Err
		}
	}
	defer func() { p.cache.Tell = unusable }()
	a, err := p.cache.GetVerified(ctx, id, open, p.compiler.of(sandbox.Labels{}), filepath.Join(runDir, fmt.Sprintf("compiled-%d", os.Getpid())))
	if err != nil {
		return err
	}
	defer a.Close()
	if bypassed != nil {
		return bypassed
	}
	how := fmt.Sprintf("compiled in %v", time.Since(began).Round(time.Millisecond))
	if a.Hit {
		how = "was there already"
	}
	_, err = fmt.Fprintf(p.out, "%s  %s  %s  %s\n", name, id.Digest, units.BytesSize(float64(a.Size)), how)
	return err
}
