package instance

import (
	"fmt"
	"math"
	"runtime/debug"
	"runtime/metrics"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// wasmPage is the unit in which a linear memory grows, bytes.
const wasmPage = 64 << 10

// A linearMemory is the memory of a guest: address space for all that it may ever
// be, of which what it has grown to can be used. It grows in place; wazero's own
// copies it, and has both in use meanwhile. Pages that were never touched take no
// memory, and are zero.
//
// It implements [experimental.LinearMemory]. Its address never changes, so that it
// could back a shared memory. It is not for use by several threads at once.
type linearMemory struct {
	reserved []byte // PROT_NONE, but for usable bytes
	usable   uint64
	// allows tells whether it may grow to that many bytes now.
	allows func(size uint64) bool
	shown  *MemorySize // what usable is told; may be nil
}

// reserve makes the memory of a guest: least bytes of it, which may become most.
// Both are multiples of a page.
//
// Where address space or data are limited (RLIMIT_AS, RLIMIT_DATA) it takes half
// of that at the most, since the engine needs some too; the guest then cannot grow
// as far. If not even least can be had, it is an error.
func reserve(least, most uint64, allows func(uint64) bool) (*linearMemory, error) {
	for _, resource := range []int{unix.RLIMIT_AS, unix.RLIMIT_DATA} {
		var limit unix.Rlimit
		if err := unix.Prlimit(0, resource, nil, &limit); err != nil {
			return nil, fmt.Errorf("resource limit: %w", err)
		}
		most = max(least, min(most, limit.Cur/2/wasmPage*wasmPage))
	}
	m := &linearMemory{allows: allows}
	for most > 0 {
		var err error
		m.reserved, err = unix.Mmap(-1, 0, int(most), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err == nil {
			break
		}
		if most == least {
			return nil, fmt.Errorf("its memory of %d bytes: %w", least, err)
		}
		most = least + (most-least)/2/wasmPage*wasmPage
	}
	if err := m.extend(least); err != nil {
		m.Free()
		return nil, fmt.Errorf("its memory of %d bytes: %w", least, err)
	}
	return m, nil
}

// extend makes at least size bytes usable.
func (m *linearMemory) extend(size uint64) error {
	if size <= m.usable {
		return nil
	}
	if err := unix.Mprotect(m.reserved[m.usable:size], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	m.usable = size
	m.shown.set(size)
	return nil
}

// show tells s how large the memory is, from now on.
func (m *linearMemory) show(s *MemorySize) {
	m.shown = s
	s.set(m.usable)
}

// Reallocate gives the memory the given size, in bytes. It is nil when that cannot
// be had, and the guest sees memory.grow fail.
func (m *linearMemory) Reallocate(size uint64) []byte {
	if size > m.usable && (size > uint64(len(m.reserved)) || !m.allows(size) || m.extend(size) != nil) {
		return nil
	}
	if size == 0 {
		return []byte{}
	}
	return m.reserved[:size:size]
}

// Free gives all of it back. What Reallocate has returned must not be touched any
// more.
func (m *linearMemory) Free() {
	if m.reserved != nil {
		_ = unix.Munmap(m.reserved) // cannot fail of what Mmap gave
	}
	m.reserved, m.usable = nil, 0
}

// allocator gives out m, to the one module that is instantiated. It was reserved
// before, since to wazero an allocation cannot fail.
func (m *linearMemory) allocator() experimental.MemoryAllocator {
	return experimental.MemoryAllocatorFunc(func(uint64, uint64) experimental.LinearMemory { return m })
}

// A budget divides what the container may have between the guest's memory and
// what the engine needs beside it: see RATIONALE.md, "How much of the limit is the
// guest's?".
type budget struct {
	limit *MemoryLimit
	code  uint64 // of the machine, bytes
	stack uint64 // of the guest's calls, bytes
	// What the engine had when it was last asked to give back what it could. A guest
	// may ask for more than there is again and again.
	floor uint64
}

// kernelRoom is what the kernel charges a container for that is not memory of its
// process: page tables, stacks of threads, and what each processor keeps ready.
func kernelRoom(limit uint64) uint64 { return 1<<20 + limit/256 }

// engineRoom is what the Go runtime may take beyond what it has, whatever the guest
// takes.
func engineRoom(limit uint64) uint64 { return min(limit/64, 8<<20) }

// untouched is what the Go runtime counts as its own and never touches, as measured
// in instance processes of any module: 3.5 to 3.8 MiB.
const untouched = 3 << 20

// newBudget is that of a module which is about to be loaded: until then the
// engine may have all of it.
func newBudget(limit *MemoryLimit) *budget {
	b := &budget{limit: limit, stack: maxStack}
	b.leave(0)
	return b
}

// loaded takes code bytes of machine code in account, and a guest's memory of least
// bytes. The code is a file's, of which the first container to read it pays for.
func (b *budget) loaded(least, code uint64) error {
	limit := b.limit.Get()
	if limit == 0 {
		return nil
	}
	if least > limit {
		return fmt.Errorf("has a memory of at least %d bytes: the memory limit of its container is %d", least, limit)
	}
	b.code = code
	b.stack = 0
	b.stack = min(max(b.rest(limit, least)/8, 256<<10), 16<<20)
	b.leave(least)
	return nil
}

// allows tells whether a guest's memory may grow to size bytes. If so, the rest is
// the engine's.
func (b *budget) allows(size uint64) bool {
	limit := b.limit.Get()
	if limit == 0 {
		debug.SetMemoryLimit(math.MaxInt64) // there may have been one
		return true
	}
	rest := b.rest(limit, size)
	room := engineRoom(limit)
	used := goMemory()
	if used+room > rest && b.floor+room <= rest && used > b.floor+room/2 {
		debug.FreeOSMemory()
		used = goMemory()
		b.floor = used
	}
	if used+room > rest {
		return false
	}
	b.leave(size)
	return true
}

// rest is what a guest's memory of size bytes leaves of the limit; 0 if nothing.
func (b *budget) rest(limit, size uint64) uint64 {
	taken := size + b.code + b.stack + kernelRoom(limit)
	return limit - min(limit, taken)
}

// leave has Go's collector keep to what a guest's memory of size bytes leaves.
// Less than it needs is of no use: it would do nothing else.
func (b *budget) leave(size uint64) {
	limit := b.limit.Get()
	if limit == 0 {
		return
	}
	debug.SetMemoryLimit(int64(max(b.rest(limit, size), goMemory()+engineRoom(limit)) + untouched))
}

// goMemory is what the Go runtime has in use, bytes.
func goMemory() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64() - untouched
}

// newMemory reserves the memory of a module that has been loaded.
func newMemory(code []byte, compiled uint64, b *budget) (*linearMemory, error) {
	least, most, err := module.Memory(code)
	if err != nil {
		return nil, err
	}
	if err := b.loaded(least*wasmPage, compiled); err != nil {
		return nil, err
	}
	return reserve(least*wasmPage, most*wasmPage, b.allows)
}
