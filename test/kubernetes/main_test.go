// Package kubernetes runs pods of the built shim on a real kubelet: etcd, the API
// server, the kubelet and containerd, from what make has built.
//
// All of it has namespaces of its own, of mounts, network and processes, and is in
// one temporary folder in memory. So ports are free, no address but the loopback's
// is to be had, and what a kubelet leaves behind goes with the namespaces.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The test program runs itself twice: as the first process of its namespaces, and
// then as what runs the tests there.
const (
	roleEnv = "TEST_KUBERNETES_ROLE"
	dirEnv  = "TEST_KUBERNETES_DIR"
)

func TestMain(m *testing.M) {
	var code int
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		code, err = outside()
	case "init":
		code, err = first(os.Getenv(dirEnv))
	default:
		code, err = inside(m, os.Getenv(dirEnv))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

// kept are settings of the whole machine that a kubelet changes.
var kept = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// outside makes the namespaces and cleans up what is not in them.
func outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("a kubelet needs root: run this as root (sudo make test-kubernetes)")
	}
	for _, name := range kept {
		name = filepath.Join("/proc/sys", name)
		value, err := os.ReadFile(name)
		if err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, os.WriteFile(name, value, 0o600)) }()
	}
	dir, err := os.MkdirTemp("", "kubernetes-test")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir), removeCgroups(cgroupRoot(dir))) }()

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	defer stop()
	// The parent of a process, for its death signal, is a thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := again(ctx, "init", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	return exitCode(cmd.Run())
}

// again is this program with the same arguments in another role.
func again(ctx context.Context, role, dir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

func exitCode(err error) (int, error) {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// first furnishes the namespaces, starts what runs the tests, and reaps what is
// left to it, the shims among it. All else is killed as it ends.
func first(dir string) (int, error) {
	// Shared, as on a real node.
	for _, flags := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|flags, ""); err != nil {
			return 1, fmt.Errorf("mount propagation: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 1, fmt.Errorf("mount proc: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0711"); err != nil {
		return 1, fmt.Errorf("mount %s: %w", dir, err)
	}
	// Where these programs and runc write, some whatever they are told.
	for _, name := range []string{"/run", "/var/lib", "/var/log"} {
		own := filepath.Join(dir, name)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return 1, err
		}
		if err := unix.Mount(own, name, "", unix.MS_BIND, ""); err != nil {
			return 1, fmt.Errorf("mount %s: %w", name, err)
		}
	}
	if err := network(); err != nil {
		return 1, fmt.Errorf("network: %w", err)
	}
	cmd := again(context.Background(), "tests", dir)
	cmd.Env = append(cmd.Env, "TMPDIR=/run") // short, for the paths of sockets
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid == cmd.Process.Pid && status.Signaled():
			return 1, fmt.Errorf("the tests ended by %v", status.Signal())
		case pid == cmd.Process.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// network gives the loopback interface the address of the node: a kubelet takes
// none of 127.0.0.0/8.
func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(nodeIP + "/32")
	if err != nil {
		return err
	}
	return netlink.AddrAdd(lo, addr)
}

// cgroupRoot is the cgroup that the kubelet has its own in.
func cgroupRoot(dir string) string { return "/" + filepath.Base(dir) }

// hierarchies are the folders where cgroups are: one with version 2, else many.
func hierarchies() ([]string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return nil, err
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{"/sys/fs/cgroup"}, nil
	}
	return filepath.Glob("/sys/fs/cgroup/*")
}

func makeCgroups(root string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.Mkdir(filepath.Join(dir, root), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroups(root string) error {
	dirs, err := hierarchies()
	errs := []error{err}
	for _, dir := range dirs {
		var found []string
		errs = append(errs, filepath.WalkDir(filepath.Join(dir, root), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				found = append(found, path)
			}
			return err
		}))
		for i := len(found) - 1; i >= 0; i-- {
			errs = append(errs, unix.Rmdir(found[i]))
		}
	}
	return errors.Join(errs...)
}
