package gone

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
	{"start", []string{"shim", "-id", "c1", "start"}, ""},
	{"the shim itself", []string{"shim", "-namespace", "default", "-id", "c1"}, ""},
	{"a container called delete is started", []string{"shim", "-id", "delete", "start"}, ""},
	{"a shim whose id is delete", []string{"shim", "-debug", "-id", "delete"}, ""},
	{"no id", []string{"shim", "-namespace", "default", "delete"}, ""},
	{"an id without a value", []string{"shim", "-debug", "-id", "delete"}, ""},
	{"the command alone", []string{"shim", "delete"}, ""},
	{"a role", []string{"shim", "instance"}, ""},
	{"nothing", []string{"shim"}, ""},
	{"no name even", nil, ""},
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

// The kernel enters the program at a symbol of ours, as in `make build`.
func TestADeletionThatIsDoneDoesNotStartTheGoRuntime(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-ldflags", "-E containerd_shim_wazero_entry", "-o", program, "./testdata/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
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
		if emulator := os.Getenv("TEST_EMULATOR"); emulator != "" { // as of another architecture
			cmd = exec.Command(emulator, append([]string{"-0", args[0], program}, args[1:]...)...)
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
