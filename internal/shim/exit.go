package shim

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// exitStatus is how a process ended. In a bundle it is exit.json, with the field
// names of containerd's own shim.
type exitStatus struct {
	At     time.Time `json:"Timestamp"`
	Pid    int       `json:"Pid"`
	Status int       `json:"Status"` // the guest's, or 128 + signal
}

// exitReason is the value of [telemetry.ExitReason] for a guest, by its status. Its
// process has said that it has ended, or has failed; or the kernel has killed a process
// of the container for want of memory.
func exitReason(status int, oom, ended, failed bool) string {
	switch {
	case failed:
		return telemetry.ExitTrap
	case status == 0:
		return telemetry.ExitZero
	case ended || status <= 128:
		return telemetry.ExitNonzero
	case oom && status == 128+int(unix.SIGKILL):
		return telemetry.ExitOOM
	}
	return telemetry.ExitSignal
}

const exitFile = "exit.json"

// write puts the status on disk, where `delete` finds it should the shim die.
func (e exitStatus) write(bundle string) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(bundle, exitFile), data, 0o600); err != nil {
		return fmt.Errorf("exit status: %w", err)
	}
	return nil
}

// readExitStatus reads what write has written.
func readExitStatus(bundle string) (e exitStatus, err error) {
	data, err := os.ReadFile(filepath.Join(bundle, exitFile))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("%s: %w", exitFile, err)
	}
	if e.Pid <= 0 || e.Pid > math.MaxInt32 || e.Status < 0 || e.Status > math.MaxUint8 || e.At.IsZero() {
		return e, fmt.Errorf("%s: no exit status in %s", exitFile, data)
	}
	return e, nil
}
