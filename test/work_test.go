package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// What the benchmark has guests do, a little of each: the same source as a module
// and as a Linux program, whose sums depend on all that was done.
func TestAGuestDoesTheWorkThatAProgramDoes(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "work.wasm")
	// Of a line: its name, how often it was done, how long that took, its sum.
	time := regexp.MustCompile(`(?m)^(\S+ \d+) \d+ ([0-9a-f]{16})$`)
	for _, tt := range []struct {
		piece, size string
		lines       int
	}{
		{"sha256", "1", 1}, {"nbody", "10", 1}, {"memory", "1", 3}, {"indirect", "100", 1}, {"host", "1", 2},
		{"grow", "8", 1}, {"file", "2", 6}, {"files", "100", 5}, {"stdout", "8", 2},
	} {
		t.Run(tt.piece, func(t *testing.T) {
			dir := t.TempDir()
			var stdout, stderr bytes.Buffer
			program := exec.Command(filepath.Join(bin(), "guests", "work-static"), tt.piece, tt.size, dir)
			program.Stdout, program.Stderr = &stdout, &stderr
			if err := program.Run(); err != nil {
				t.Fatalf("the program: %v\n%s", err, &stderr)
			}
			want := time.ReplaceAllString(stderr.String(), "$1 $2")
			if got := len(time.FindAllString(stderr.String(), -1)); got != tt.lines {
				t.Fatalf("the program said %d lines that are of a piece of work, want %d:\n%s", got, tt.lines, &stderr)
			}
			b, status := run(t, n, img, args("/app.wasm", tt.piece, tt.size, "/data"),
				oci.WithMounts([]specs.Mount{{Destination: "/data", Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}}))
			if status != 0 {
				t.Fatalf("exit status %d\n%s", status, b.stderr)
			}
			if got := time.ReplaceAllString(b.stderr.String(), "$1 $2"); got != want {
				t.Errorf("the module has done\n%s\nthe program\n%s", got, want)
			}
			if got := b.stdout.String(); got != stdout.String() {
				t.Errorf("the module has printed %d bytes, the program %d, or others", len(got), stdout.Len())
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left in the directory: %v, %v", left, err)
			}
		})
	}
}
