package shim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestAnExitStatusIsReadAsItWasWritten(t *testing.T) {
	bundle := t.TempDir()
	for _, want := range []exitStatus{
		{At: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC), Pid: 42, Status: 0},
		{At: time.Date(2026, 1, 2, 3, 4, 6, 0, time.FixedZone("", 3600)), Pid: 1, Status: 137}, // in the place of the other
	} {
		if err := want.write(bundle); err != nil {
			t.Fatal(err)
		}
		got, err := readExitStatus(bundle)
		if err != nil {
			t.Fatal(err)
		}
		if !got.At.Equal(want.At) || got.Pid != want.Pid || got.Status != want.Status {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	entries, err := os.ReadDir(bundle)
	if err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v, want %s alone", entries, err, exitFile)
	}
}

func TestAFileWithoutAnExitStatusIsAnError(t *testing.T) {
	const at = `"Timestamp":"2026-01-02T03:04:05Z"`
	for name, content := range map[string]string{
		"an empty file":      "",
		"no JSON":            "137",
		"half of it":         `{` + at + `,"Pid":4`,
		"null":               "null",
		"an empty object":    "{}",
		"no pid":             `{` + at + `,"Status":0}`,
		"a negative pid":     `{` + at + `,"Pid":-1,"Status":0}`,
		"a negative status":  `{` + at + `,"Pid":1,"Status":-1}`,
		"no time":            `{"Pid":1,"Status":0}`,
		"a time of no form":  `{"Timestamp":"today","Pid":1,"Status":0}`,
		"a status of a kind": `{` + at + `,"Pid":1,"Status":"0"}`,
	} {
		t.Run(name, func(t *testing.T) {
			bundle := t.TempDir()
			if err := os.WriteFile(filepath.Join(bundle, exitFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readExitStatus(bundle)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %+v, %v, want an error", got, err)
			}
		})
	}
}

func TestAMissingExitStatusIsToldFromABadOne(t *testing.T) {
	if _, err := readExitStatus(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	if err := (exitStatus{}).write(filepath.Join(t.TempDir(), "gone")); err == nil {
		t.Error("a status was written to a bundle that is gone")
	}
}

func TestAContainerWithoutAnExitStatusWasKilled(t *testing.T) {
	bundle := t.TempDir()
	for _, tt := range []struct {
		pid  string
		want int
	}{{"", 0}, {"42", 42}, {" 42\n", 42}, {"x", 0}, {"-1", 0}} {
		if err := os.WriteFile(filepath.Join(bundle, pidFile), []byte(tt.pid), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := stopStatus(t.Context(), bundle); got.Pid != tt.want || got.ExitStatus != 137 || got.ExitedAt.IsZero() {
			t.Errorf("%q: got %+v, want pid %d and status 137", tt.pid, got, tt.want)
		}
	}
	e := exitStatus{At: time.Unix(7, 0), Pid: 43, Status: 3}
	if err := e.write(bundle); err != nil {
		t.Fatal(err)
	}
	if got := stopStatus(t.Context(), bundle); got.Pid != 43 || got.ExitStatus != 3 || !got.ExitedAt.Equal(e.At) {
		t.Errorf("got %+v, want %+v", got, e)
	}
}
