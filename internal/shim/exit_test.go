package shim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
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

func TestHowAGuestEndedIsOneOfAFew(t *testing.T) {
	for _, tt := range []struct {
		name               string
		status             int
		oom, ended, failed bool
		want               string
	}{
		{"it exits with 0", 0, false, true, false, telemetry.ExitZero},
		{"it exits with 3", 3, false, true, false, telemetry.ExitNonzero},
		{"it exits with the status of a signal", 137, true, true, false, telemetry.ExitNonzero},
		{"it exits with the status of a trap", 134, false, true, false, telemetry.ExitNonzero},
		{"it traps", 134, false, true, true, telemetry.ExitTrap},
		{"it is killed", 137, false, false, false, telemetry.ExitSignal},
		{"it is terminated", 143, true, false, false, telemetry.ExitSignal},
		{"it has no memory left", 137, true, false, false, telemetry.ExitOOM},
		{"its process fails", 1, false, false, false, telemetry.ExitNonzero},
		{"its process says nothing", 0, false, false, false, telemetry.ExitZero},
	} {
		if got := exitReason(tt.status, tt.oom, tt.ended, tt.failed); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
