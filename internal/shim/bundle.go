package shim

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/regular"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/cgroup"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/seccomp"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// A bundle is the directory containerd gives a container: config.json, the
// mount point of its root file system, and what the shim writes there.
type bundle struct {
	path string
	spec *spec
	ids  *sandbox.IDMappings // found by walls; nil without a user namespace
	// filters are for every process of the container; made by walls.
	filters *seccomp.Filters
	// poststop hooks are to be run; a Create's, and then a Delete's
	hooked bool
}

// spec is what the shim heeds of an OCI specification. Reading only that takes
// 0.44 ms instead of 0.70: encoding/json looks at every type it may meet.
type spec struct {
	Version     string            `json:"ociVersion"`
	Process     *specs.Process    `json:"process"`
	Root        *specs.Root       `json:"root"`
	Hostname    string            `json:"hostname"`
	Domainname  string            `json:"domainname"`
	Mounts      []specs.Mount     `json:"mounts"`
	Hooks       *specs.Hooks      `json:"hooks"`
	Annotations map[string]string `json:"annotations"`
	Linux       *specLinux        `json:"linux"`
}

type specLinux struct {
	UIDMappings []specs.LinuxIDMapping `json:"uidMappings"`
	GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
	Sysctl      map[string]string      `json:"sysctl"`
	Resources   *specs.LinuxResources  `json:"resources"`
	CgroupsPath string                 `json:"cgroupsPath"`
	Namespaces  []specs.LinuxNamespace `json:"namespaces"`
	Devices     []specs.LinuxDevice    `json:"devices"`
	MountLabel  string                 `json:"mountLabel"`

	TimeOffsets  map[string]specs.LinuxTimeOffset `json:"timeOffsets"`
	MemoryPolicy *specs.LinuxMemoryPolicy         `json:"memoryPolicy"`
	// Refused where they ask for something.
	IntelRdt   *specs.LinuxIntelRdt            `json:"intelRdt"`
	NetDevices map[string]specs.LinuxNetDevice `json:"netDevices"`

	MaskedPaths       []string            `json:"maskedPaths"`
	ReadonlyPaths     []string            `json:"readonlyPaths"`
	RootfsPropagation string              `json:"rootfsPropagation"`
	Seccomp           *specs.LinuxSeccomp `json:"seccomp"`
}

const configFile = "config.json"

// maxConfig bounds config.json, bytes. Decoded it may be a hundred times as large, in
// a process that others depend on. The arguments and the environment of a Linux
// program come to 2 MiB at most (execve(2)), the annotations of a pod to 256 KiB.
const maxConfig = 4 << 20

// loadBundle reads config.json. Every error unwraps to
// [errdefs.ErrInvalidArgument].
func loadBundle(path string) (*bundle, error) {
	b, err := readBundle(path)
	if err == nil && (b.spec.Root == nil || b.spec.Root.Path == "") {
		err = errors.New("root.path is missing")
	}
	if err != nil {
		return nil, (&bundle{path: path}).invalid(err)
	}
	return b, nil
}

func (b *bundle) invalid(err error) error {
	return fmt.Errorf("bundle: %s: %w: %w", filepath.Join(b.path, configFile), err, errdefs.ErrInvalidArgument)
}

func readBundle(path string) (*bundle, error) {
	data, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	b := &bundle{path: path, spec: &spec{}}
	return b, json.Unmarshal(data, b.spec)
}

func readConfig(bundle string) ([]byte, error) {
	data, err := regular.ReadFile(filepath.Join(bundle, configFile), maxConfig)
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the path will be named
	}
	return data, err
}

// annotations are those of config.json; a nil bundle has none.
func (b *bundle) annotations() map[string]string {
	if b == nil {
		return nil
	}
	return b.spec.Annotations
}

// inScope tells whether the container's cgroup is to be made by systemd, by its path.
func (b *bundle) inScope() bool {
	return b.spec.Linux != nil && cgroup.IsScope(b.spec.Linux.CgroupsPath)
}

// cgroup is the cgroup that the bundle names for the container id. Errors unwrap to
// [errdefs.ErrInvalidArgument].
func (b *bundle) cgroup(id string, systemd bool) (*cgroup.Cgroup, error) {
	linux := b.spec.Linux
	if linux == nil {
		linux = &specLinux{}
	}
	c, err := cgroup.New(linux.CgroupsPath, id, linux.Resources, systemd)
	if err != nil {
		return nil, b.invalid(err)
	}
	return c, nil
}

// walls are those of the container. What a wasm container cannot be made of is an
// error that unwraps to [errdefs.ErrInvalidArgument].
func (b *bundle) walls(ctx context.Context) (_ sandbox.Config, err error) {
	defer func() {
		if err != nil {
			err = b.invalid(err)
		}
	}()
	s := b.spec
	if err := checkProcess(s.Process); err != nil {
		return sandbox.Config{}, err
	}
	if s.Linux == nil {
		return sandbox.Config{}, errors.New("linux is missing: not the configuration of a Linux container")
	}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Destination) {
			return sandbox.Config{}, fmt.Errorf("mount %s: the destination is not an absolute path", m.Destination)
		}
	}
	if err := checkHooks(s.Hooks); err != nil {
		return sandbox.Config{}, err
	}
	if err := sandbox.CheckPropagation(s.Linux.RootfsPropagation); err != nil {
		return sandbox.Config{}, fmt.Errorf("linux.rootfsPropagation: %w", err)
	}
	ns, err := sandbox.NewNamespaces(s.Linux.Namespaces)
	if err != nil {
		return sandbox.Config{}, err
	}
	if err := ns.Check(); err != nil {
		return sandbox.Config{}, err
	}
	if b.ids, err = sandbox.NewIDMappings(s.Linux.Namespaces, s.Linux.UIDMappings, s.Linux.GIDMappings); err != nil {
		return sandbox.Config{}, err
	}
	if err := s.Linux.checkUnsupported(); err != nil {
		return sandbox.Config{}, err
	}
	if err := b.checkUser(s.Process); err != nil {
		return sandbox.Config{}, err
	}
	if !ns.Has(specs.UTSNamespace) && s.Hostname+s.Domainname != "" {
		return sandbox.Config{}, errors.New("hostname: not without a UTS namespace, it would be the host's")
	}
	if len(s.Hostname) > maxHostname || len(s.Domainname) > maxHostname {
		return sandbox.Config{}, fmt.Errorf("hostname: longer than %d bytes", maxHostname)
	}
	err = telemetry.Stage(ctx, telemetry.SeccompCompile, func(context.Context) (err error) {
		b.filters, err = seccomp.New(s.Linux.Seccomp)
		return err
	})
	if err != nil {
		return sandbox.Config{}, err
	}
	c, err := b.wallsOf(s.Process)
	if err != nil {
		return sandbox.Config{}, err
	}
	c.Base, c.Rootfs, c.Namespaces = b.path, b.rootfs(), ns
	c.Readonly, c.Mounts = s.Root.Readonly, s.Mounts
	c.Hostname, c.Domainname = s.Hostname, s.Domainname
	c.Devices, c.MaskedPaths, c.ReadonlyPaths = s.Linux.Devices, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths
	c.NewUserNamespace, c.Sysctl = newUserNamespace, s.Linux.Sysctl
	return c, nil
}

// newUserNamespace makes a user namespace with the given mappings, and no process
// in it.
func newUserNamespace(ids sandbox.IDMappings) (f *os.File, err error) {
	// Not from the caller's thread: with another root than its mount namespace's,
	// the kernel lets none be made.
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err = mount.GetUsernsFD(mappings(ids.UIDs), mappings(ids.GIDs))
	}()
	<-done
	return f, err
}

func mappings(ids []specs.LinuxIDMapping) string {
	text := make([]string, len(ids))
	for i, m := range ids {
		text[i] = fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size)
	}
	return strings.Join(text, ",")
}

const (
	maxHostname = 64      // the kernel's __NEW_UTS_LEN, bytes
	maxGroups   = 1 << 16 // the kernel's NGROUPS_MAX
)

// checkUnsupported looks for what no wasm container can be given.
func (l *specLinux) checkUnsupported() error {
	if l.IntelRdt != nil {
		return errors.New("linux.intelRdt: not supported for wasm containers")
	}
	for name := range l.NetDevices {
		return fmt.Errorf("linux.netDevices: %s: not supported for wasm containers", name)
	}
	return nil
}

// checkUser looks whether the process's user is one of the container's.
func (b *bundle) checkUser(p *specs.Process) error {
	if len(p.User.AdditionalGids) > maxGroups {
		return fmt.Errorf("process.user: more than %d additional groups", maxGroups)
	}
	if _, err := b.ids.User(p.User); err != nil {
		return fmt.Errorf("process.user: %w", err)
	}
	// To the kernel that is -1: nobody, or whoever it is already.
	for _, id := range append([]uint32{p.User.UID, p.User.GID}, p.User.AdditionalGids...) {
		if id == math.MaxUint32 {
			return fmt.Errorf("process.user: %d is no user or group", id)
		}
	}
	return nil
}

func (b *bundle) labels(p *specs.Process) sandbox.Labels {
	return sandbox.Labels{AppArmor: p.ApparmorProfile, SELinux: p.SelinuxLabel, Mount: b.spec.Linux.MountLabel}
}

// checkProcess looks for what no process can be made of.
func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return errors.New("process is missing")
	case len(p.Args) == 0:
		return errors.New("process.args is empty: nothing to run")
	case !filepath.IsAbs(p.Cwd):
		return fmt.Errorf("process.cwd %q: not an absolute path", p.Cwd)
	}
	for i, a := range p.Args {
		if strings.Contains(a, "\x00") {
			return fmt.Errorf("process.args[%d]: has a NUL", i) // not which: it may be a secret
		}
	}
	for i, kv := range p.Env {
		if name, _, _ := strings.Cut(kv, "="); name == "" || strings.Contains(kv, "\x00") {
			return fmt.Errorf("process.env[%d]: has no name, or a NUL", i)
		}
	}
	return nil
}

// mountpoint is where the root file system of a Create request is mounted.
func (b *bundle) mountpoint() string { return filepath.Join(b.path, "rootfs") }

// rootfs is the root file system: root.path, which may be elsewhere.
func (b *bundle) rootfs() string {
	if filepath.IsAbs(b.spec.Root.Path) {
		return b.spec.Root.Path
	}
	return filepath.Join(b.path, b.spec.Root.Path)
}

// wallsOf are the walls of a process, as far as they are its own.
func (b *bundle) wallsOf(p *specs.Process) (_ sandbox.Config, err error) {
	c := sandbox.Config{Program: programName(instance.RoleInstance), IDs: b.ids, Cwd: p.Cwd, User: p.User, Rlimits: p.Rlimits, OOMScoreAdj: p.OOMScoreAdj}
	if _, err := b.tellsTrace(p); err != nil {
		return c, err
	}
	if _, err := b.engine(p); err != nil {
		return c, err
	}
	c.Labels, c.MemoryPolicy = b.labels(p), b.spec.Linux.MemoryPolicy
	c.Scheduling = sandbox.Scheduling{Scheduler: p.Scheduler, IOPriority: p.IOPriority}
	c.Capabilities = effective(p)
	if c.TimeOffsets, err = sandbox.TimeOffsets(b.spec.Linux.Namespaces, b.spec.Linux.TimeOffsets); err != nil {
		return c, err
	}
	return c, c.Check()
}

// wallsOfExec are those of an exec. What it does not say it has from the
// container's first process, as with runc.
func (b *bundle) wallsOfExec(p *specs.Process) (sandbox.Config, error) {
	first := b.spec.Process
	if p.ApparmorProfile == "" {
		p.ApparmorProfile = first.ApparmorProfile
	}
	if p.SelinuxLabel == "" {
		p.SelinuxLabel = first.SelinuxLabel
	}
	if len(p.Rlimits) == 0 {
		p.Rlimits = first.Rlimits
	}
	if p.Scheduler == nil {
		p.Scheduler = first.Scheduler
	}
	if p.IOPriority == nil {
		p.IOPriority = first.IOPriority
	}
	if p.ExecCPUAffinity == nil {
		p.ExecCPUAffinity = first.ExecCPUAffinity
	}
	if err := b.checkUser(p); err != nil {
		return sandbox.Config{}, err
	}
	c, err := b.wallsOf(p)
	if err != nil || p.ExecCPUAffinity == nil {
		return c, err
	}
	// Not its `initial`: that is for a process which is moved to its cgroup, and this
	// one is born there.
	c.Scheduling.CPUs = p.ExecCPUAffinity.Final
	return c, c.Check()
}

// effective are the capabilities that a process is to have, of the five sets of the
// specification: what an exec leaves of them, root the effective set, others the
// ambient one only, and no more than the others allow: capabilities(7).
func effective(p *specs.Process) []string {
	sets := p.Capabilities
	if sets == nil {
		return nil
	}
	of, limits := sets.Effective, [][]string{sets.Bounding, sets.Permitted}
	if p.User.UID != 0 {
		of, limits = sets.Ambient, append(limits, sets.Inheritable)
	}
	var names []string
	for _, name := range of {
		if !slices.ContainsFunc(limits, func(set []string) bool { return !slices.Contains(set, name) }) {
			names = append(names, name)
		}
	}
	return names
}

// linuxProgram is the path of the entry point if that is a Linux program.
func (b *bundle) linuxProgram(ctx context.Context) string {
	if checkProcess(b.spec.Process) != nil {
		return ""
	}
	entry, f, err := findEntry(ctx, b.open, b.spec.Process)
	if err != nil {
		return ""
	}
	defer f.Close()
	if !errors.Is(module.Check(f), module.ErrLinuxProgram) {
		return ""
	}
	return entry.Path
}

// spare is a directory, not there yet, for what a module was compiled to that can be kept
// in no cache. Should the shim be killed, it goes with the bundle.
func (b *bundle) spare() string { return filepath.Join(b.path, "compiled-"+rand.Text()) }

// open is a [module.FileOpener] for a container that has only its root file system
// yet: what is to be mounted in it is looked for in its source.
func (b *bundle) open(path string, flags int) (*os.File, error) {
	root, rel, covers := b.rootfs(), path, ""
	for _, m := range b.spec.Mounts {
		dest := filepath.Clean(m.Destination)
		below, err := filepath.Rel(dest, path)
		if err != nil || !filepath.IsLocal(below) || len(dest) < len(covers) {
			continue
		}
		root, rel, covers = "", below, dest
		if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			root = m.Source
		}
	}
	if root == "" {
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.ENOENT}
	}
	if !filepath.IsAbs(root) {
		root = filepath.Join(b.path, root)
	}
	if rel == "." {
		return os.OpenFile(root, flags, 0)
	}
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return sandbox.OpenInRoot(int(dir.Fd()), rel, flags)
}

// findEntry looks up what a process is to run. It gives up with ctx: a PATH can be
// long, and so can what is looked through for each of its directories.
func findEntry(ctx context.Context, open module.FileOpener, p *specs.Process) (module.Entry, *os.File, error) {
	until := func(path string, flags int) (*os.File, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return open(path, flags)
	}
	return module.Find(until, p.Args[0], p.Cwd, searchPath(p))
}

// instanceConfig is what the child that is the process is told.
func (b *bundle) instanceConfig(p *specs.Process) instance.Config {
	c := instance.Config{Args: p.Args, Env: p.Env, Cwd: p.Cwd, Umask: 0o022, Rlimits: p.Rlimits, Seccomp: b.filters}
	if p.User.Umask != nil {
		c.Umask = *p.User.Umask
	}
	c.Engine, _ = b.engine(p) // one that is none has not come this far
	if b.spec.Linux != nil {
		c.MaxProcs = maxProcs(b.spec.Linux.Resources)
	}
	return c
}

// maxProcs is what the runtime of Go would make of a limit of processor time: as
// many threads as it is for, and two at least, or the collector would stop the
// guest. An Update of the limit does not change it.
func maxProcs(r *specs.LinuxResources) int {
	if r == nil || r.CPU == nil || r.CPU.Quota == nil || *r.CPU.Quota <= 0 {
		return 0
	}
	period := uint64(100000) // the kernel's own, microseconds
	if r.CPU.Period != nil && *r.CPU.Period > 0 {
		period = *r.CPU.Period
	}
	return int(min(max(2, (uint64(*r.CPU.Quota)+period-1)/period), math.MaxInt32))
}

// searchPath is the PATH of the process's environment.
func searchPath(p *specs.Process) string { return variable(p, "PATH") }

// variable is the value of one in the process's environment; empty without one.
func variable(p *specs.Process, name string) (value string) {
	for _, kv := range p.Env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v // the last one, as for a process that reads them in turn
		}
	}
	return value
}

// An annotation of a container, and a variable of a process that goes before it: whether
// its guest is told the trace it is in. A truth value, see [strconv.ParseBool].
const (
	traceContextAnnotation = RuntimeName + "/trace-context"
	traceContextEnv        = "WAZERO_TRACE_CONTEXT"

	engineAnnotation = RuntimeName + "/engine"
	engineEnv        = "WAZERO_ENGINE"
)

// asked are the values that are set of an annotation of the container and of a variable of
// a process. The last of them holds.
func (b *bundle) asked(p *specs.Process, annotation, env string) (all []struct{ by, value string }) {
	for _, a := range []struct{ by, value string }{
		{"annotations: " + annotation, b.spec.Annotations[annotation]},
		{"process.env: " + env, variable(p, env)},
	} {
		if a.value != "" {
			all = append(all, a)
		}
	}
	return all
}

// tellsTrace tells whether the guest of a process gets TRACEPARENT, TRACESTATE and
// BAGGAGE of its run. Never one that has one of them of its own.
func (b *bundle) tellsTrace(p *specs.Process) (told bool, err error) {
	for _, asked := range b.asked(p, traceContextAnnotation, traceContextEnv) {
		if told, err = strconv.ParseBool(asked.value); err != nil {
			return false, fmt.Errorf("%s: %q is neither true nor false", asked.by, asked.value)
		}
	}
	for _, own := range []string{"TRACEPARENT", "TRACESTATE", "BAGGAGE"} {
		told = told && variable(p, own) == ""
	}
	return told, nil
}

// engine is what runs the guest of a process: the compiler, unless it asks for another.
func (b *bundle) engine(p *specs.Process) (instance.Engine, error) {
	engine := instance.Compiler
	for _, asked := range b.asked(p, engineAnnotation, engineEnv) {
		switch e := instance.Engine(asked.value); e {
		case instance.Compiler, instance.Interpreter:
			engine = e
		default:
			return "", fmt.Errorf("%s: %q is neither %s nor %s", asked.by, asked.value, instance.Compiler, instance.Interpreter)
		}
	}
	return engine, nil
}
