package entry

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var commandLines = []struct {
	name string
	args []string
	id   string // empty: not a deletion
}{
	{"containerd's", []string{"shim", "-namespace", "default", "-address", "/run/c.sock", "-publish-binary", "/bin/c", "-id", "c1", "-bundle", "/b", "delete"}, "c1"},
	{"only the id", []string{"shim", "-id", "c1", "delete"}, "c1"},
	{"two dashes", []string{"shim", "--id", "c1", "delete"}, "c1"},
	{"the id first", []string{"shim", "-id", "c1", "-debug", "delete"}, "c1"},
	{"an id that is the command", []string{"shim", "-id", "delete", "delete"}, "delete"},
	{"the shim itself", []string{"shim", "-namespace", "default", "-id", "c1"}, ""},
	{"a shim whose id is delete", []string{"shim", "-debug", "-id", "delete"}, ""},
	{"no id", []string{"shim", "-namespace", "default", "delete"}, ""},
	{"an id without a value", []string{"shim", "-debug", "-id", "delete"}, ""},
	{"the command alone", []string{"shim", "delete"}, ""},
	{"a role", []string{"shim", "instance"}, ""},
	{"nothing", []string{"shim"}, ""},
	{"no name even", nil, ""},
	{"an image called delete", []string{"shim", "compile", "-id", "c1", "delete"}, ""},
	{"an image called start", []string{"shim", "compile", "-n", "default", "start"}, ""},
	{"an unknown command", []string{"shim", "-id", "c1", "starts"}, ""},
	{"a shorter one", []string{"shim", "-id", "c1", "star"}, ""},
	{"something behind the command", []string{"shim", "-id", "c1", "delete", "x"}, ""},
}

func TestTheBundleOfADeletionIsBesideTheWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	cwd := filepath.Join(dir, "some")
	if err := os.Mkdir(cwd, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(cwd)
	for _, tt := range commandLines {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := bundleOf(tt.args)
			want := ""
			if tt.id != "" {
				want = filepath.Join(dir, tt.id)
			}
			if got != want || ok != (want != "") {
				t.Errorf("got %q, %v, want %q", got, ok, want)
			}
		})
	}
}

func TestTheAnswerIsLeftInTheBundle(t *testing.T) {
	bundle := t.TempDir()
	if err := Record(bundle, []byte("answer")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(bundle, file)); err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v, want the answer", got, err)
	}
	if err := Record(filepath.Join(bundle, "gone"), nil); err == nil {
		t.Error("in a bundle that is gone: got no error")
	}
}

// build makes the program of testdata, which the kernel enters at a symbol of ours, as in
// `make build`, unless flags say otherwise.
func build(t *testing.T, dir string, flags ...string) (program string) {
	t.Helper()
	program = filepath.Join(dir, "program")
	if len(flags) == 0 {
		flags = []string{"-ldflags", "-E containerd_shim_wazero_entry"}
	}
	build := exec.Command("go", append(append([]string{"build"}, flags...), "-o", program, "./testdata/program")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// command runs the program, by an emulator if it is of another architecture.
func command(program string, args ...string) *exec.Cmd {
	if emulator := os.Getenv("TEST_EMULATOR"); emulator != "" {
		return exec.Command(emulator, append([]string{"-0", args[0], program}, args[1:]...)...)
	}
	cmd := exec.Command(program)
	cmd.Args = args
	return cmd
}

func TestAStartIsTheStartOfOneGoRuntime(t *testing.T) {
	emulated := os.Getenv("TEST_EMULATOR") != ""
	program, plain := build(t, t.TempDir()), build(t, t.TempDir(), "-ldflags", "-s")
	args := []string{"shim", "-namespace", "default", "-id", "c1", "start"}
	for _, tt := range []struct {
		name, program string
		extra         int // descriptors that it has besides
		runtimes      int
	}{
		{"linked for it", program, 0, 1},
		{"of a caller that leaves descriptors open", program, 2, 2},
		{"of a caller that leaves one open", program, 1, 2},
		{"linked without", plain, 0, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if emulated && tt.runtimes > 1 {
				t.Skip("executes itself, which is the emulator")
			}
			dir := t.TempDir()
			run := func(input string) (stdout, stderr string, err error) {
				cmd := command(tt.program, args...)
				cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1", "REPORT="+filepath.Join(dir, "report"))
				cmd.Stdin = strings.NewReader(input)
				for range tt.extra {
					cmd.ExtraFiles = append(cmd.ExtraFiles, os.Stderr)
				}
				var out, log bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &log
				err = cmd.Run()
				if got := strings.Count(log.String(), "init runtime @"); got != tt.runtimes {
					t.Errorf("%d runtimes were started, want %d", got, tt.runtimes)
				}
				return out.String(), log.String(), err
			}
			if out, log, err := run("no"); err == nil || out != "" || !strings.HasSuffix(log, "refused: no") {
				t.Errorf("one that fails: %v, it printed %q, %q", err, out, log)
			}
			if out, log, err := run(""); err != nil || out != "answer" {
				t.Fatalf("%v, it printed %q, %q", err, out, log)
			}
			report := reported(t, dir)
			const want = "<nil>\n0 /dev/null\n1 /dev/null\n2 /dev/null\n"
			if !strings.HasPrefix(report, want) || strings.Contains(report, "pipe") || !emulated && !strings.HasSuffix(report, `"shim\x00-namespace\x00default\x00-id\x00c1\x00serve\x00"`) {
				t.Errorf("what is left says %q, want %q", report, want)
			}
		})
	}
}

// reported is what the program has written, when it has.
func reported(t *testing.T, dir string) string {
	t.Helper()
	for range 1000 {
		if data, err := os.ReadFile(filepath.Join(dir, "report")); err == nil {
			return string(data)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it has reported nothing")
	return ""
}

func TestWhoeverStartsAloneKnows(t *testing.T) {
	program := build(t, t.TempDir())
	out, err := command(program, "shim", "-id", "c1", "serve").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "serve") {
		t.Errorf("`serve` without a `start`: %v, %q", err, out)
	}
	for _, who := range []string{"the caller has killed `start`", "nobody reads the answer"} {
		t.Run(who, func(t *testing.T) {
			dir := t.TempDir()
			cmd := command(program, "shim", "-namespace", "default", "-id", "c1", "start")
			cmd.Env = append(os.Environ(), "REPORT="+filepath.Join(dir, "report"))
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd.Stdout = w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			// It has forked once its child can be told from it.
			for children := ""; !strings.Contains(children, " "); time.Sleep(time.Millisecond) {
				data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
				if err != nil {
					t.Fatal(err)
				}
				children = string(data)
			}
			if strings.Contains(who, "killed") {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait() // killed
			} else {
				r.Close()
			}
			stdin.Close()
			if report := reported(t, dir); !strings.HasPrefix(report, "answer: ") || !strings.Contains(report, "broken pipe") {
				t.Errorf("it says %q", report)
			}
			_ = cmd.Wait()
		})
	}
}

func TestADeletionThatIsDoneDoesNotStartTheGoRuntime(t *testing.T) {
	dir := t.TempDir()
	program := build(t, dir)
	longest, tooLong := strings.Repeat("x", 127), strings.Repeat("x", 128)
	for _, id := range []string{"some", "c1", "delete", "empty", "much", longest, tooLong} {
		if err := os.Mkdir(filepath.Join(dir, id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	answer := strings.Repeat("y", 100)
	for id, answer := range map[string]string{"c1": answer, "delete": answer, longest: answer, tooLong: answer, "empty": "", "much": strings.Repeat("z", 256)} {
		if err := Record(filepath.Join(dir, id), []byte(answer)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args []string) (stdout string, runtimeStarted bool) {
		t.Helper()
		cmd := exec.Command(program)
		cmd.Args = args
		if len(args) > 0 {
			cmd = command(program, args...)
		}
		cmd.Dir = filepath.Join(dir, "some")
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		return out.String(), log.Len() > 0
	}
	for _, tt := range commandLines {
		if os.Getenv("TEST_EMULATOR") != "" && len(tt.args) == 0 {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			want := answer
			if tt.id == "" {
				want = "started"
			}
			if got, started := run(tt.args); got != want || started != (tt.id == "") {
				t.Errorf("got %q, and the runtime started is %v; want %q", got, started, want)
			}
		})
	}
	for _, tt := range []struct{ name, id, want string }{
		{"there is no answer", "some", "started"},
		{"there is no bundle", "none", "started"},
		{"there is no id", "", "started"},
		{"an empty answer", "empty", "started"},
		{"an answer too large to be one", "much", strings.Repeat("z", 256)},
		{"an id too long to be one", tooLong, answer},
		{"an id that is a path", "../" + filepath.Base(dir) + "/c1", answer},
	} {
		t.Run(tt.name+" is left to Go", func(t *testing.T) {
			if got, started := run([]string{"shim", "-id", tt.id, "delete"}); got != tt.want || !started {
				t.Errorf("got %q, and the runtime started is %v; want %q", got, started, tt.want)
			}
		})
	}
	if got, started := run([]string{"shim", "-id", longest, "delete"}); got != answer || started {
		t.Errorf("the longest id: got %q, and the runtime started is %v", got, started)
	}
}
