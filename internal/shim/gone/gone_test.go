package gone

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheBundleOfADeletionIsBesideTheWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	cwd := filepath.Join(dir, "some")
	if err := os.Mkdir(cwd, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(cwd)
	c1 := filepath.Join(dir, "c1")
	for _, tt := range []struct {
		name string
		args []string
		want string // empty: not a deletion
	}{
		{"containerd's", []string{"shim", "-namespace", "default", "-address", "/run/c.sock", "-publish-binary", "/bin/c", "-id", "c1", "-bundle", "/b", "delete"}, c1},
		{"only the id", []string{"shim", "-id", "c1", "delete"}, c1},
		{"two dashes", []string{"shim", "--id", "c1", "delete"}, c1},
		{"the id first", []string{"shim", "-id", "c1", "-debug", "delete"}, c1},
		{"an id that is the command", []string{"shim", "-id", "delete", "delete"}, filepath.Join(dir, "delete")},
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
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := bundleOf(tt.args)
			if got != tt.want || ok != (tt.want != "") {
				t.Errorf("got %q, %v, want %q", got, ok, tt.want)
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
