package test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// The installer of a node (deploy/install), as its DaemonSet runs it, on a real
// containerd that has never heard of the shim.

// Configurations of CRI's plugins without the shim, as they are on a node: what else
// they say has to be so afterwards, or there is no pod.
const (
	bareCRI = `
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "` + node.PauseImage + `"
[plugins."io.containerd.cri.v1.runtime"]
  cdi_spec_dirs = []
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{{.Bin}}/cni"]
    conf_dir = "{{.Dir}}/cni"
`
	bareCRI17 = `
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + node.PauseImage + `"
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.Bin}}/cni"
    conf_dir = "{{.Dir}}/cni"
`
)

// An installer runs the script with a node's paths.
type installer struct {
	dir, config string
	env         []string
}

// newInstaller is for a configuration file, with a folder of its own to install to.
func newInstaller(t *testing.T, containerd, config string) *installer {
	t.Helper()
	dir := t.TempDir()
	return &installer{dir: dir, config: config, env: []string{
		"SOURCE=" + filepath.Join(options().Shim, "containerd-shim-wazero-v1"),
		"DESTINATION=" + filepath.Join(dir, "opt"),
		"CONTAINERD=" + containerd,
		"CONFIG=" + config,
		"RESTART=echo x >>" + filepath.Join(dir, "restarts"),
	}}
}

func (i *installer) command(t *testing.T, verb string, env ...string) *exec.Cmd {
	t.Helper()
	script, err := filepath.Abs("../deploy/install")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), script, verb)
	cmd.Env = slices.Concat(os.Environ(), i.env, env)
	return cmd
}

// must runs the script, which has to succeed and to say all that is wanted.
func (i *installer) must(t *testing.T, verb string, want ...string) {
	t.Helper()
	out, err := i.command(t, verb).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", verb, err, out)
	}
	for _, w := range want {
		if !strings.Contains(string(out), w) {
			t.Errorf("%s says\n%s, want %q", verb, out, w)
		}
	}
}

// program is what was installed.
func (i *installer) program() string {
	return filepath.Join(i.dir, "opt", "bin", "containerd-shim-wazero-v1")
}

// restarts counts how often containerd was to be restarted.
func (i *installer) restarts(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(i.dir, "restarts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(data, []byte("x"))
}

// state is all that is in the folders of the installation and the configuration, and
// when it was written.
func (i *installer) state(t *testing.T, times bool) (all []string) {
	t.Helper()
	for _, path := range []string{i.config, filepath.Join(filepath.Dir(i.config), "conf.d"), filepath.Join(i.dir, "opt")} {
		err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && d.Name() == ".lock" {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			line := path + " " + info.Mode().String()
			if times && !d.IsDir() {
				line += " " + info.ModTime().String()
			}
			if filepath.Ext(path) == ".toml" && info.Mode().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += "\n" + string(data)
			}
			all = append(all, line)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func reboot(t *testing.T, n *node.Node) {
	t.Helper()
	if err := n.Halt(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestTheInstallerMakesANodeThatRunsModules(t *testing.T) {
	for _, tt := range []struct {
		name, version, cri string
		imports            bool
		dropin             bool // the handler is in a file of its own
	}{
		{"containerd 2, which reads a folder", "", bareCRI, true, true},
		{"containerd 2, which reads none", "", bareCRI, false, false},
		{"containerd 1.7, which would have the folder's in place of its own", "1.7", bareCRI17, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			need(t)
			opts := options()
			opts.Version, opts.CRI, opts.CRIConfig = tt.version, true, tt.cri
			if tt.imports {
				opts.Head = `imports = ["{{.Dir}}/conf.d/*.toml"]`
			}
			n := newNode(t, opts)
			podImages(t, n)
			name := "containerd"
			if tt.version != "" {
				name += "-" + tt.version
			}
			i := newInstaller(t, n.Tool(name), filepath.Join(n.Dir, "config.toml"))
			before := i.state(t, false)
			noHandler := func() {
				t.Helper()
				p := newPodOn(t, n)
				if _, err := n.Pods().RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: "wazero"}); err == nil || !strings.Contains(err.Error(), `"wazero"`) {
					t.Fatalf("a pod, without a handler: got %v", err)
				}
			}
			noHandler()

			i.must(t, "install", i.program()+": installed", "now", "restarted")
			if got := i.restarts(t); got != 1 {
				t.Errorf("containerd was restarted %d times, want once", got)
			}
			if _, err := os.Stat(filepath.Join(n.Dir, "conf.d", "containerd-shim-wazero.toml")); (err == nil) != tt.dropin {
				t.Errorf("a file of its own: %v, want %v", err, tt.dropin)
			}
			reboot(t, n)
			p := newPodOn(t, n).up("wazero")
			if got := p.finished(probeImage, []string{"print", "installed"}); got != "installed\n" {
				t.Errorf("printed %q", got)
			}
			runc := func() {
				t.Helper()
				p := newPodOn(t, n).up("runc")
				if got := p.finished(busyboxImage, []string{"echo", "x"}); got != "x\n" {
					t.Errorf("runc's pod printed %q", got)
				}
				p.remove()
			}
			if tt.version == "" { // whose shim that of runc here is
				runc()
			}

			installed := i.state(t, true)
			i.must(t, "install", "is installed already", "has the handler already")
			if got := i.state(t, true); !slices.Equal(got, installed) {
				t.Errorf("a second installation has changed something: got\n%s\nwant\n%s", got, installed)
			}

			// An upgrade, under a container that runs.
			id := p.run(probeImage, idleModule)
			p.running(id, "up\n")
			newer := *i
			newer.env = append(slices.Clone(i.env), "SOURCE="+otherProgram(t))
			newer.must(t, "install", i.program()+": installed", "has the handler already")
			if got, want := i.restarts(t), 1; got != want {
				t.Errorf("containerd was restarted %d times, want %d: it runs the program anew for every pod", got, want)
			}
			if resp, err := p.exec(id, "/app.wasm", "print", "x"); err != nil || string(resp.Stdout) != "x\n" {
				t.Errorf("exec in a container of the old program: %v, %v", resp, err)
			}
			p2 := newPodOn(t, n).up("wazero")
			if got := p2.finished(probeImage, []string{"print", "upgraded"}); got != "upgraded\n" {
				t.Errorf("printed %q", got)
			}
			p2.remove()
			if tt.version == "1.7" { // and one of containerd
				if err := n.Upgrade(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
				newer.env = append(newer.env, "CONTAINERD="+n.Tool("containerd"))
				newer.must(t, "install", "has the handler already")
				p3 := newPodOn(t, n).up("wazero")
				if got := p3.finished(probeImage, []string{"print", "x"}); got != "x\n" {
					t.Errorf("printed %q", got)
				}
				p3.remove()
				runc()
			}

			out, err := newer.command(t, "uninstall").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "containers run on the shim") {
				t.Fatalf("uninstall under a container: %v\n%s", err, out)
			}
			if resp, err := p.exec(id, "/app.wasm", "print", "x"); err != nil || string(resp.Stdout) != "x\n" {
				t.Errorf("exec after that: %v, %v", resp, err)
			}
			p.remove()
			newer.must(t, "uninstall", "removed", "restarted")
			if got := i.state(t, false); !slices.Equal(got, before) {
				t.Errorf("left is\n%s\nwant\n%s", got, before)
			}
			newer.must(t, "uninstall", "is not installed")
			if got := i.restarts(t); got != 2 {
				t.Errorf("containerd was restarted %d times, want 2", got)
			}
			reboot(t, n)
			noHandler()
		})
	}
}

// otherProgram is a shim of other bytes.
func otherProgram(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(options().Shim, "containerd-shim-wazero-v1"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "shim")
	if err := os.WriteFile(path, append(data, "another"...), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// config3 is a configuration of containerd 2 that is not run with.
const config3 = "version = 3\n# of the node\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n"

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "containerd", "config.toml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if text == "" {
		return path
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func script(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// readOnly makes a folder one that cannot be written to.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []uintptr{syscall.MS_BIND, syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_RDONLY} {
		if err := syscall.Mount(dir, dir, "", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestTheInstallerSaysWhatIsWrongAndChangesNothing(t *testing.T) {
	need(t)
	containerd := filepath.Join(bin(), "containerd")
	for _, tt := range []struct {
		name, config string
		env          func(t *testing.T, i *installer) []string
		want         string
	}{
		{"no containerd", config3, func(*testing.T, *installer) []string { return []string{"CONTAINERD=/nowhere/containerd"} }, "/nowhere/containerd: no containerd on this node"},
		{"one that is too old", config3, func(t *testing.T, _ *installer) []string {
			return []string{"CONTAINERD=" + script(t, "containerd", "echo containerd github.com/containerd/containerd v1.6.33 abc")}
		}, `its version is "1.6.33"`},
		{"one that is too new", config3, func(t *testing.T, _ *installer) []string {
			return []string{"CONTAINERD=" + script(t, "containerd", "echo containerd github.com/containerd/containerd/v3 v3.0.0 abc")}
		}, `its version is "3.0.0"`},
		{"something else by its name", config3, func(t *testing.T, _ *installer) []string {
			return []string{"CONTAINERD=" + script(t, "containerd", "echo hello")}
		}, `of "hello"`},
		{"a kernel that is too old", config3, func(t *testing.T, _ *installer) []string {
			return []string{"PATH=" + filepath.Dir(script(t, "uname", "echo 5.4.0-12-generic")) + ":" + os.Getenv("PATH")}
		}, "Linux 5.4.0-12-generic: 5.12 or later is needed"},
		{"no program", config3, func(*testing.T, *installer) []string { return []string{"SOURCE=/nowhere/shim"} }, "/nowhere/shim: no such file"},
		{"a program of another architecture", config3, func(t *testing.T, _ *installer) []string {
			path := otherProgram(t)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data[18] ^= 0xff // e_machine
			if err := os.WriteFile(path, data, 0o700); err != nil {
				t.Fatal(err)
			}
			return []string{"SOURCE=" + path}
		}, "does not run on this node"},
		{"no root of the node", config3, func(*testing.T, *installer) []string { return []string{"HOST=/nowhere"} }, "/nowhere: no such directory"},
		{"a node that is read-only", config3, func(t *testing.T, i *installer) []string {
			readOnly(t, filepath.Join(i.dir, "ro"))
			return []string{"DESTINATION=" + filepath.Join(i.dir, "ro", "shim")}
		}, "ro/shim: cannot be written to"},
		{"a configuration that is read-only", config3, func(t *testing.T, i *installer) []string {
			readOnly(t, filepath.Dir(i.config))
			return nil
		}, "ead-only file system"},
		{"a configuration that is broken", "version = 3\n[plugins\n", nil, "containerd does not take it as it is"},
		{"a configuration of no version", "root = \"/x\"\n", nil, "has no version"},
		{"a configuration of version 1", "version = 1\n", nil, "is of version 1, which is not known"},
		{"a configuration that is a link", "", func(t *testing.T, i *installer) []string {
			if err := os.Symlink(writeConfig(t, config3), i.config); err != nil {
				t.Fatal(err)
			}
			return nil
		}, "is a symbolic link"},
		{"a handler that somebody else made", "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.wazero]\n  runtime_type = \"x\"\n", nil, "a handler \"wazero\" that is not this installer's"},
		{"a containerd without CRI", "version = 3\n", func(*testing.T, *installer) []string {
			return []string{"CONTAINERD=" + filepath.Join(bin(), "containerd-2.1")}
		}, "has it the CRI plugin?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := newInstaller(t, containerd, writeConfig(t, tt.config))
			if tt.env != nil {
				i.env = append(i.env, tt.env(t, i)...)
			}
			read := func() string {
				data, err := os.ReadFile(i.config)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				return string(data)
			}
			before := read()
			out, err := i.command(t, "install").CombinedOutput()
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.Contains(string(out), tt.want) {
				t.Errorf("got %v\n%s, want %q", err, out, tt.want)
			}
			if got := read(); got != before {
				t.Errorf("%s has become\n%s", i.config, got)
			}
			if entries, err := os.ReadDir(filepath.Join(filepath.Dir(i.config), "conf.d")); err == nil {
				t.Errorf("left is %v", entries)
			}
			if got := i.restarts(t); got != 0 {
				t.Errorf("containerd was restarted %d times", got)
			}
		})
	}
}

func TestANodeWithoutAConfigurationGetsOneAndLosesItAgain(t *testing.T) {
	need(t)
	i := newInstaller(t, filepath.Join(bin(), "containerd"), writeConfig(t, ""))
	i.must(t, "install", "now")
	data, err := os.ReadFile(i.config)
	if err != nil || !strings.Contains(string(data), "\nversion = 3\n") {
		t.Errorf("%v, %s", err, data)
	}
	i.must(t, "install", "has the handler already")
	i.must(t, "uninstall", "removed")
	if got := i.state(t, false); len(got) != 0 {
		t.Errorf("left is %s", got)
	}
}

func TestARestartThatFailedIsMadeUpFor(t *testing.T) {
	need(t)
	i := newInstaller(t, filepath.Join(bin(), "containerd"), writeConfig(t, config3))
	out, err := i.command(t, "install", "RESTART=exit 3").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "containerd was not restarted") {
		t.Fatalf("got %v\n%s", err, out)
	}
	i.must(t, "install", "restarted")
	i.must(t, "install")
	if got := i.restarts(t); got != 1 {
		t.Errorf("containerd was restarted %d times, want once", got)
	}
}

// As the DaemonSet has it: the node's root is a folder, and nothing is looked for
// outside.
func TestTheInstallerWorksOnARootThatIsMountedElsewhere(t *testing.T) {
	need(t)
	host := t.TempDir()
	if err := syscall.Mount("/", host, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(host, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	i := newInstaller(t, filepath.Join(bin(), "containerd"), writeConfig(t, strings.TrimSuffix(config3, "\n")))
	i.env = append(i.env, "HOST="+host)
	before := i.state(t, false)
	before[0] += "\n" // which its last line lacked
	i.must(t, "install", "now", "restarted")
	data, err := os.ReadFile(i.config)
	if err != nil || !strings.Contains(string(data), `runtime_path = "`+i.program()+`"`) {
		t.Errorf("%v, %s", err, data)
	}
	i.must(t, "uninstall", "removed")
	if got := i.state(t, false); !slices.Equal(got, before) {
		t.Errorf("left is\n%s\nwant\n%s", got, before)
	}
}

func TestAnInstallerThatIsKilledAtAnyMomentIsFollowedByOneThatIsNot(t *testing.T) {
	need(t)
	want := ""
	for _, verb := range []string{"install", "uninstall"} {
		for after := time.Duration(0); after < 600*time.Millisecond; after += 60 * time.Millisecond {
			i := newInstaller(t, filepath.Join(bin(), "containerd"), writeConfig(t, config3))
			if want == "" {
				i.must(t, "install")
				want = normal(t, i)
				continue
			}
			if verb == "uninstall" {
				i.must(t, "install")
			}
			cmd := i.command(t, verb)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after)
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
			i.must(t, "install")
			if got := normal(t, i); got != want {
				t.Errorf("%s, killed after %v, and again: got\n%s\nwant\n%s", verb, after, got, want)
			}
			if i.restarts(t) == 0 {
				t.Errorf("%s, killed after %v, and again: containerd was not restarted", verb, after)
			}
			i.must(t, "uninstall")
			if got := i.state(t, false); len(got) != 1 || !strings.HasSuffix(got[0], config3) {
				t.Errorf("%s, killed after %v: left is %s", verb, after, got)
			}
		}
	}
}

// normal is an installation without the names of its folders.
func normal(t *testing.T, i *installer) string {
	t.Helper()
	all := fmt.Sprintf("%q", i.state(t, false))
	for from, to := range map[string]string{i.dir: "DIR", filepath.Dir(i.config): "CONFIG"} {
		all = strings.ReplaceAll(all, from, to)
	}
	return all
}
