package shim

import (
	"fmt"
	"math"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// The tables of the host's file that say what compiling modules, and keeping what they
// were compiled to, may take. A zero is as good as nothing.
type (
	compileTable struct {
		Memory     byteSize `toml:"memory"`
		Processors float64  `toml:"processors"`
		AtOnce     int      `toml:"at_once"`
		Time       duration `toml:"time"`
	}
	cacheTable struct {
		Size    byteSize `toml:"size"`
		Entries int      `toml:"entries"`
	}
)

// byteSize is a number of bytes, or a text with a unit, of 1024: "512MiB", "2g".
type byteSize int64

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *byteSize) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a size", text)
	}
	*b = byteSize(n)
	return nil
}

// duration is a text such as "90s" or "5m".
type duration time.Duration

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration(v)
	return err
}

const (
	// minCompileMemory is what compiling anything takes.
	minCompileMemory = 64 << 20
	// maxAtOnce bounds how many modules are compiled at once on a node.
	maxAtOnce = 1024
	// defaultAtOnce lets a small module by while a large one, or one that was made to
	// take long, is compiled. Each has all processors anyway.
	defaultAtOnce = 2
)

// check says what is wrong with a table, and with which key.
func (t compileTable) check() error {
	switch {
	case t.Memory != 0 && t.Memory < minCompileMemory:
		return fmt.Errorf("compile.memory: %d bytes: want %d at least", t.Memory, minCompileMemory)
	case t.Processors < 0 || t.Processors > 0 && t.Processors < 0.01 || math.IsNaN(t.Processors) || t.Processors > 1<<20:
		return fmt.Errorf("compile.processors: %v: want a number from 0.01 on", t.Processors)
	case t.AtOnce < 0 || t.AtOnce > maxAtOnce:
		return fmt.Errorf("compile.at_once: %d: want 1 to %d", t.AtOnce, maxAtOnce)
	case t.Time != 0 && time.Duration(t.Time) < time.Second:
		return fmt.Errorf("compile.time: %v: want a second at least", time.Duration(t.Time))
	}
	return nil
}

func (t cacheTable) check() error {
	switch {
	case t.Size < 0:
		return fmt.Errorf("cache.size: %d: want a number of bytes", t.Size)
	case t.Entries < 0:
		return fmt.Errorf("cache.entries: %d: want a number of entries", t.Entries)
	}
	return nil
}

func (t cacheTable) limits() module.Limits {
	return module.Limits{Size: int64(t.Size), Entries: t.Entries}
}

// A compileLimit is what compiling modules may take on this node.
type compileLimit struct {
	Memory     uint64        // of all at once, bytes
	Processors float64       // of all at once; 0: all there are
	AtOnce     int           // modules
	Time       time.Duration // of all processors together, for one module; 0: by its size
}

// limits are those of the table, and what holds without.
func (t compileTable) limits() (compileLimit, error) {
	l := compileLimit{uint64(t.Memory), t.Processors, t.AtOnce, time.Duration(t.Time)}
	if l.AtOnce == 0 {
		l.AtOnce = defaultAtOnce
	}
	if l.Memory == 0 {
		var machine unix.Sysinfo_t
		if err := unix.Sysinfo(&machine); err != nil {
			return l, fmt.Errorf("sysinfo: %w", err)
		}
		l.Memory = machine.Totalram * uint64(machine.Unit) / 2
	}
	return l, nil
}

// resources are the limits as a cgroup has them.
func (l compileLimit) resources() *specs.LinuxResources {
	memory := int64(l.Memory)
	r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}}
	if l.Processors > 0 {
		period := uint64(100_000) // µs
		quota := int64(l.Processors * float64(period))
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	return r
}
