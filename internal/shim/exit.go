package shim

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// exitStatus is how a process ended. In a bundle it is exit.json, with the field
// names of containerd's own shim.
type exitStatus struct {
	At     time.Time `json:"Timestamp"`
	Pid    int       `json:"Pid"`
	Status int       `json:"Status"` // the guest's, or 128 + signal
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
