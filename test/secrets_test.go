package test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// A secret of containerd's environment.
const secretName, secretValue = "WZ_SECRET", "hunter2-of-containerd"

// children are the processes that a shim has started, by role.
func children(t *testing.T, shim int, role string) (pids []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", shim))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range tasks {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		for _, f := range strings.Fields(string(data)) {
			cmdline, err := os.ReadFile("/proc/" + f + "/cmdline")
			if err == nil && bytes.HasSuffix(cmdline, []byte("\x00"+role+"\x00")) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// inMemory tells whether any memory that a process can read has the text in it.
func inMemory(t *testing.T, pid int, text string) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	var read int64
	for _, line := range strings.Split(strings.TrimSpace(string(maps)), "\n") {
		if strings.Contains(line, " [v") { // the kernel's own pages
			continue
		}
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatal(err)
		}
		if mode[0] != 'r' {
			continue
		}
		for at := from; at < to; at += int64(len(buf)) - int64(len(text)) {
			n, err := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if bytes.Contains(buf[:n], []byte(text)) {
				return true
			}
			read += int64(n)
			if err != nil && err != io.EOF || n < len(text) {
				break // reserved, and not there
			}
		}
	}
	if read < 1<<20 {
		t.Errorf("process %d: of its memory only %d bytes could be read", pid, read)
	}
	return false
}

// keepsSecrets fails a test whose process has anything of containerd's environment
// or the shim's.
func keepsSecrets(t *testing.T, what string, pid int, traced bool) {
	t.Helper()
	environ := strings.Split(strings.TrimSuffix(procFile(t, uint32(pid), "environ"), "\x00"), "\x00")
	if environ[0] == "" {
		environ = nil
	}
	if traced != (len(environ) == 1 && strings.HasPrefix(environ[0], "TRACECONTEXT={")) || !traced && len(environ) > 0 {
		t.Errorf("%s: its environment is %q", what, environ)
	}
	cmdline := strings.Split(procFile(t, uint32(pid), "cmdline"), "\x00")
	if len(cmdline) != 3 || cmdline[0] != "containerd-shim-wazero-v1" {
		t.Errorf("%s: its command line is %q", what, cmdline)
	}
	for _, secret := range []string{secretName, secretValue} {
		if inMemory(t, pid, secret) {
			t.Errorf("%s: %s is in its memory", what, secret)
		}
	}
}

func TestSecretsOfContainerdAndTheShimAreInNoProcessOfAGuest(t *testing.T) {
	for name, env := range map[string]string{"traced": "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "untraced": "OTEL_SDK_DISABLED=false"} {
		t.Run(name, func(t *testing.T) {
			traced := name == "traced"
			n := newNode(t, options(secretName+"="+secretValue, env))
			if !inMemory(t, n.Pid(), secretValue) {
				t.Fatal("this test would find nothing: containerd itself has no secret")
			}
			img := image(t, n, "secrets", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("big.wasm", guest(t, "esbuild.wasm")))
			group := oci.WithAnnotations(map[string]string{groupAnnotation: fmt.Sprintf("secrets-%d", rand.Uint32())})
			b := container(t, n, img, args("/app.wasm", "env", "print", "done", "idle"), oci.WithEnv([]string{"OF=the container"}), group)
			b.mustCreate(t)
			shim := shimPID(t, n, b.ID())
			if !inMemory(t, shim, secretValue) {
				t.Fatal("this test would find nothing: the shim has no secret")
			}
			keepsSecrets(t, "created", int(b.task.Pid()), traced)
			b.mustStart(t)
			eventually(t, "the guest has printed its environment", func() bool { return strings.HasSuffix(b.stdout.String(), "done\n") })
			keepsSecrets(t, "running", int(b.task.Pid()), traced)
			want := []string{"env: OF=the container", "env: PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "env: PWD=/", "done", ""}
			if got := strings.Split(b.stdout.String(), "\n"); !slices.Equal(got, want) {
				t.Errorf("the guest's environment is %q, want %q", got, want)
			}
			e, err := b.exec(t, "e", nil, "/app.wasm", "env", "print", "done", "idle")
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Start(b.ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the exec has printed its environment", func() bool { return strings.HasSuffix(e.stdout.String(), "done\n") })
			keepsSecrets(t, "exec", int(e.Pid()), traced)
			if strings.Contains(e.stdout.String(), secretName) {
				t.Errorf("the environment of an exec: %q", e.stdout)
			}
			// A compile process: it takes seconds for this module, and is stopped where it is.
			c := container(t, n, img, args("/big.wasm"), group)
			created := make(chan error)
			go func() { created <- c.create() }()
			var compiler []int
			eventually(t, "there is a compile process", func() bool {
				compiler = children(t, shim, "compile")
				return len(compiler) == 1 && len(descriptors(t, compiler[0])) > 0
			})
			if err := unix.Kill(compiler[0], unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			keepsSecrets(t, "compile", compiler[0], traced)
			if err := unix.Kill(compiler[0], unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := <-created; err == nil {
				t.Error("a container was created without its compile process")
			}
		})
	}
}

// descriptors are what a process has open: for the standard streams with their
// number, for others without. Each with its name, without what differs from run to
// run, and how it was opened.
func descriptors(t *testing.T, pid int) (open []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil {
			continue // closed meanwhile
		}
		fd, err := strconv.Atoi(filepath.Base(l))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
		if err != nil {
			continue
		}
		_, flags, _ := strings.Cut(string(info), "flags:\t")
		flags, _, _ = strings.Cut(flags, "\n")
		mode, err := strconv.ParseInt(flags, 8, 64)
		if err != nil {
			t.Fatal(err)
		}
		to = number.ReplaceAllString(to, "N")
		if dir, name := filepath.Split(to); strings.HasPrefix(to, "/tmp/") {
			to = filepath.Base(dir) + "/" + name
		}
		if _, stream, ok := strings.Cut(to, "-std"); ok {
			to = "fifo std" + stream
		}
		to += []string{" r", " w", " rw", ""}[mode&unix.O_ACCMODE]
		if fd < 3 {
			to = fmt.Sprint(fd, " ", to)
		}
		open = append(open, to)
	}
	slices.Sort(open)
	return open
}

var number = regexp.MustCompile(`[0-9]+`)

// Where the runtime of Go waits for descriptors.
var runtimeDescriptors = []string{"anon_inode:[eventfd] rw", "anon_inode:[eventpoll] rw"}

const (
	controlDescriptor = "socket:[N] rw"
	relayDescriptor   = "pipe:[N] w"
	rootDescriptor    = "/ r" // the guest's preopened directory
)

func TestAnInstanceProcessHasNoDescriptorBeyondTheStatedOnes(t *testing.T) {
	fifos := []string{"0 fifo stdin r", "1 fifo stdout w", "2 fifo stderr w"}
	null := []string{"0 /dev/null r", "1 /dev/null w", "2 /dev/null w"}
	terminal := []string{"0 /dev/pts/N rw", "1 /dev/pts/N rw", "2 /dev/pts/N rw"}
	for name, env := range map[string]string{"traced": "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "untraced": "OTEL_SDK_DISABLED=false"} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, options(env))
			img := app(t, n, "probe.wasm")
			check := func(what string, pid uint32, streams []string, more ...string) {
				t.Helper()
				want := slices.Concat(streams, runtimeDescriptors, more)
				if name == "traced" {
					want = append(want, relayDescriptor)
				}
				slices.Sort(want)
				var got []string
				for range 100 { // the control socket is closed after the start, and not at once
					if got = descriptors(t, int(pid)); slices.Equal(got, want) {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
				t.Errorf("%s: open are %q, want %q", what, got, want)
			}
			b := container(t, n, img, args("/app.wasm", "print", "up", "idle"))
			b.mustCreate(t, true)
			check("created", b.task.Pid(), fifos, controlDescriptor)
			b.mustStart(t)
			eventually(t, "the guest runs", func() bool { return b.stdout.String() == "up\n" })
			check("running", b.task.Pid(), fifos, rootDescriptor)
			if group, err := unix.Getpgid(int(b.task.Pid())); err != nil || group != int(b.task.Pid()) {
				t.Errorf("it is in the process group %d, %v: not its own", group, err)
			}
			e, err := b.exec(t, "e", nil, "/app.wasm", "print", "up", "idle")
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Start(b.ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the exec runs", func() bool { return e.stdout.String() == "up\n" })
			check("exec", e.Pid(), []string{null[0], fifos[1], fifos[2]}, rootDescriptor)

			b = container(t, n, img, args("/app.wasm", "print", "up", "idle"), oci.WithTTY)
			b.onTerminal(t)
			check("created, with a terminal", b.task.Pid(), terminal, controlDescriptor)
			b.mustStart(t)
			eventually(t, "the guest runs", func() bool { return b.stdout.String() == "up\r\n" })
			check("running, with a terminal", b.task.Pid(), terminal, rootDescriptor)

			b = container(t, n, img, args("/app.wasm", "idle"))
			if b.task, err = b.NewTask(b.ctx, cio.NullIO); err != nil {
				t.Fatal(err)
			}
			check("created, without streams", b.task.Pid(), null, controlDescriptor)
			b.mustStart(t)
			check("running, without streams", b.task.Pid(), null, rootDescriptor)

			b = container(t, n, app(t, n, "observe-go.wasm"), args("/app.wasm", "hold"))
			b.mustCreate(t, true)
			b.mustStart(t)
			eventually(t, "the guest runs", func() bool { return b.stdout.String() == "holding\n" })
			more := []string{rootDescriptor}
			if name == "traced" {
				more = append(more, relayDescriptor) // a second one, for what the guest sends
			}
			check("running, making spans", b.task.Pid(), fifos, more...)
		})
	}
}
