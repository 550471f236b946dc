package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/instance"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/cgroup"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/seccomp"
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
	UIDMappings   []specs.LinuxIDMapping `json:"uidMappings"`
	GIDMappings   []specs.LinuxIDMapping `json:"gidMappings"`
	Sysctl        map[string]string      `json:"sysctl"`
	Resources     *specs.LinuxResources  `json:"resources"`
	CgroupsPath   string                 `json:"cgroupsPath"`
	Namespaces    []specs.LinuxNamespace `json:"namespaces"`
	Devices       []specs.LinuxDevice    `json:"devices"`
	MaskedPaths   []string               `json:"maskedPaths"`
	ReadonlyPaths []string               `json:"readonlyPaths"`
	Seccomp       *specs.LinuxSeccomp    `json:"seccomp"`
}

const configFile = "config.json"

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
	data, err := os.ReadFile(filepath.Join(path, configFile))
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	b := &bundle{path: path, spec: &spec{}}
	return b, json.Unmarshal(data, b.spec)
}

// inScope tells whether the container's cgroup is to be made by systemd, by its path.
func (b *bundle) inScope() bool {
	return b.spec.Linux != nil && cgroup.IsScope(b.spec.Linux.CgroupsPath)
}

// cgroup is the cgroup that the bundle names for the container id.
func (b *bundle) cgroup(id string, systemd bool) (*cgroup.Cgroup, error) {
	if b.spec.Linux == nil {
		return cgroup.New("", id, nil, systemd)
	}
	return cgroup.New(b.spec.Linux.CgroupsPath, id, b.spec.Linux.Resources, systemd)
}

// walls are those of the container. What a wasm container cannot be made of is an
// error that unwraps to [errdefs.ErrInvalidArgument].
func (b *bundle) walls() (_ sandbox.Config, err error) {
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
	if err := b.checkUser(s.Process); err != nil {
		return sandbox.Config{}, err
	}
	if !ns.Has(specs.UTSNamespace) && s.Hostname+s.Domainname != "" {
		return sandbox.Config{}, errors.New("hostname: not without a UTS namespace, it would be the host's")
	}
	if b.filters, err = seccomp.New(s.Linux.Seccomp); err != nil {
		return sandbox.Config{}, err
	}
	c := b.wallsOf(s.Process)
	c.Base, c.Rootfs, c.Namespaces = b.path, b.rootfs(), ns
	c.Readonly, c.Mounts = s.Root.Readonly, s.Mounts
	c.Hostname, c.Domainname = s.Hostname, s.Domainname
	c.Devices, c.MaskedPaths, c.ReadonlyPaths = s.Linux.Devices, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths
	c.NewUserNamespace, c.Sysctl = newUserNamespace, s.Linux.Sysctl
	return c, nil
}

// newUserNamespace makes a user namespace with the given mappings, and no process
// in it.
func newUserNamespace(ids sandbox.IDMappings) (*os.File, error) {
	return mount.GetUsernsFD(mappings(ids.UIDs), mappings(ids.GIDs))
}

func mappings(ids []specs.LinuxIDMapping) string {
	text := make([]string, len(ids))
	for i, m := range ids {
		text[i] = fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size)
	}
	return strings.Join(text, ",")
}

// checkUser looks whether the process's user is one of the container's.
func (b *bundle) checkUser(p *specs.Process) error {
	if _, err := b.ids.User(p.User); err != nil {
		return fmt.Errorf("process.user: %w", err)
	}
	return nil
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
func (b *bundle) wallsOf(p *specs.Process) sandbox.Config {
	c := sandbox.Config{IDs: b.ids, Cwd: p.Cwd, User: p.User, Rlimits: p.Rlimits, OOMScoreAdj: p.OOMScoreAdj}
	// What an exec leaves a process of: root the effective set, others the
	// ambient one only: capabilities(7).
	if caps := p.Capabilities; caps != nil && p.User.UID == 0 {
		c.Capabilities = caps.Effective
	} else if caps != nil {
		c.Capabilities = caps.Ambient
	}
	return c
}

// linuxProgram is the path of the entry point if that is a Linux program.
func (b *bundle) linuxProgram() string {
	if checkProcess(b.spec.Process) != nil {
		return ""
	}
	entry, f, err := findEntry(b.open, b.spec.Process)
	if err != nil {
		return ""
	}
	defer f.Close()
	if !errors.Is(module.Check(f), module.ErrLinuxProgram) {
		return ""
	}
	return entry.Path
}

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

// findEntry looks up what a process is to run.
func findEntry(open module.FileOpener, p *specs.Process) (module.Entry, *os.File, error) {
	return module.Find(open, p.Args[0], p.Cwd, searchPath(p))
}

// instanceConfig is what the child that is the process is told.
func (b *bundle) instanceConfig(p *specs.Process) instance.Config {
	c := instance.Config{Args: p.Args, Env: p.Env, Cwd: p.Cwd, Umask: 0o022, Rlimits: p.Rlimits, Seccomp: b.filters}
	if p.User.Umask != nil {
		c.Umask = *p.User.Umask
	}
	return c
}

// searchPath is the PATH of the process's environment.
func searchPath(p *specs.Process) (path string) {
	for _, kv := range p.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v // the last one, as for a process that reads them in turn
		}
	}
	return path
}
