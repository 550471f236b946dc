package instance

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

func always(uint64) bool { return true }

func reserved(t *testing.T, least, most uint64, allows func(uint64) bool) *linearMemory {
	t.Helper()
	m, err := reserve(least*wasmPage, most*wasmPage, allows)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	return m
}

// resident is how many bytes of b take memory.
func resident(t *testing.T, b []byte) (n int) {
	t.Helper()
	page := unix.Getpagesize()
	in := make([]byte, (len(b)+page-1)/page)
	if err := mincore(b, in); err != nil {
		t.Fatal(err)
	}
	for _, p := range in {
		n += int(p&1) * page
	}
	return n
}

func TestAMemoryGrowsInPlaceAndKeepsWhatIsInIt(t *testing.T) {
	m := reserved(t, 1, 1<<16, always)
	b := m.Reallocate(wasmPage)
	b[0], b[wasmPage-1] = 1, 2
	first := &b[0]
	b = m.Reallocate(1 << 32)
	if uint64(len(b)) != 1<<32 || &b[0] != first || b[0] != 1 || b[wasmPage-1] != 2 {
		t.Fatalf("%d bytes at %p, want 4 GiB at %p with what was there", len(b), &b[0], first)
	}
	if b[wasmPage] != 0 || b[len(b)-1] != 0 {
		t.Error("new pages are not zero")
	}
	if got := resident(t, b[:1<<20]); got > 256<<10 {
		t.Errorf("%d bytes of a MiB that was not touched take memory", got)
	}
}

func TestAMemoryThatCannotGrowIsAsItWas(t *testing.T) {
	for name, m := range map[string]*linearMemory{
		"at its most":     reserved(t, 1, 2, always),
		"at what is left": reserved(t, 1, 10, func(size uint64) bool { return size <= 2*wasmPage }),
	} {
		b := m.Reallocate(2 * wasmPage)
		b[0] = 1
		if got := m.Reallocate(3 * wasmPage); got != nil {
			t.Errorf("%s: it has grown to %d bytes", name, len(got))
		}
		if b = m.Reallocate(2 * wasmPage); len(b) != 2*wasmPage || b[0] != 1 {
			t.Errorf("%s: %d bytes, of which the first is %d", name, len(b), b[0])
		}
	}
}

func TestAMemoryOfNothing(t *testing.T) {
	m := reserved(t, 0, 0, always)
	if b := m.Reallocate(0); b == nil || len(b) != 0 {
		t.Errorf("got %v, want none", b)
	}
	if b := m.Reallocate(wasmPage); b != nil {
		t.Errorf("got %d bytes", len(b))
	}
}

func TestWhatAMemoryHadIsGivenBack(t *testing.T) {
	m, err := reserve(wasmPage, 2*wasmPage, always)
	if err != nil {
		t.Fatal(err)
	}
	b := m.Reallocate(wasmPage)
	b[0] = 1
	m.Free()
	if err := mincore(b, make([]byte, 16)); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("it is still mapped: %v", err)
	}
	m.Free() // wazero may close a module twice
}

// A memory against a slice that does the same, step by step.
func FuzzAMemoryIsWhatASliceWouldBe(f *testing.F) {
	f.Add(uint64(1), []byte{1, 2, 3})
	f.Add(uint64(2), bytes.Repeat([]byte{0, 255, 7}, 40))
	f.Fuzz(func(t *testing.T, seed uint64, steps []byte) {
		random := rand.New(rand.NewPCG(seed, 0))
		least, most := random.Uint64N(5), 5+random.Uint64N(60)
		bound := most * wasmPage
		m := reserved(t, least, most, func(size uint64) bool { return size <= bound })
		b := m.Reallocate(least * wasmPage)
		want := make([]byte, least*wasmPage)
		for _, step := range steps[:min(len(steps), 100)] {
			switch step % 4 {
			case 0: // as an update of the limit may
				bound = random.Uint64N(most+5) * wasmPage
			case 1:
				if len(want) > 0 {
					i := random.IntN(len(want))
					b[i], want[i] = step, step
				}
			default:
				size := uint64(len(want)) + uint64(step/4)*wasmPage
				may := size <= uint64(len(want)) || size <= most*wasmPage && size <= bound
				got := m.Reallocate(size)
				if (got != nil) != may {
					t.Fatalf("from %d to %d bytes of %d, bound %d: got %v", len(want), size, most*wasmPage, bound, got != nil)
				}
				if may {
					b, want = got, append(want, make([]byte, size-uint64(len(want)))...)
				}
			}
			if !bytes.Equal(b, want) {
				t.Fatalf("%d bytes differ from %d", len(b), len(want))
			}
		}
	})
}

// limitedEnv has the test program do, under the resource limit it names, what
// TestALimitedAddressSpace wants to see.
const limitedEnv = "TEST_LIMITED"

func TestMain(m *testing.M) {
	if what := os.Getenv(limitedEnv); what != "" {
		os.Exit(limited(what))
	}
	os.Exit(m.Run())
}

func limited(what string) int {
	resource := map[string]int{"space": unix.RLIMIT_AS, "data": unix.RLIMIT_DATA}[what]
	limit := unix.Rlimit{Cur: 3 << 30, Max: 3 << 30}
	if err := unix.Setrlimit(resource, &limit); err != nil {
		return 2
	}
	if _, err := reserve(4<<30, 4<<30, always); err == nil || !strings.Contains(err.Error(), "4294967296") {
		return 3
	}
	m, err := reserve(wasmPage, 4<<30, always)
	if err != nil {
		return 4
	}
	if got := uint64(len(m.reserved)); got > limit.Cur/2 || got < limit.Cur/16 {
		return 5
	}
	if b := m.Reallocate(100 << 20); b == nil {
		return 6
	}
	if b := m.Reallocate(2 << 30); b != nil {
		return 7
	}
	for range 100 { // the engine still has its own
		_ = bytes.Repeat([]byte{1}, 1<<20)
	}
	return 0
}

func TestWhereAddressSpaceIsLimitedAMemoryHasLess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"space", "data"} {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), limitedEnv+"="+what)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
}

func limitOf(t *testing.T, bytes uint64) *MemoryLimit {
	t.Helper()
	f, l, err := NewConfig(Config{}, bytes)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { l.Close() })
	return l
}

func TestABudgetLeavesRoomForTheEngine(t *testing.T) {
	const code, stack = 10 << 20, 1 << 20
	l := limitOf(t, 1<<30)
	b := &budget{limit: l, code: code, stack: stack}
	t.Cleanup(func() { b.limit = limitOf(t, 0); b.allows(0) }) // no limit for the other tests
	bound := func() uint64 {
		least, most := uint64(0), uint64(4<<30)
		for most-least > wasmPage {
			if middle := (least + most) / 2; b.allows(middle) {
				least = middle
			} else {
				most = middle
			}
		}
		return least
	}
	for _, limit := range []uint64{64 << 20, 256 << 20, 1 << 30, 3 << 30} {
		l.Set(limit)
		got := bound()
		if most := limit - code - stack; got > most {
			t.Errorf("limit %d: a guest may have %d, with code and stack that is too much", limit, got)
		}
		if got < limit/4 {
			t.Errorf("limit %d: a guest may have only %d", limit, got)
		}
	}
	l.Set(code)
	if b.allows(wasmPage) {
		t.Error("a guest may grow where its code takes all")
	}
	l.Set(0)
	if got := bound(); got < 4<<30-2*wasmPage {
		t.Errorf("without a limit a guest may have only %d", got)
	}
	l.Set(math.MaxInt64)
	if got := bound(); got < 4<<30-2*wasmPage {
		t.Errorf("with a large limit a guest may have only %d", got)
	}
}

func TestAModulesMemoryIsTheOneThatWasReserved(t *testing.T) {
	// A function that returns what memory.grow does, of 5 pages, with 2 to 9 there.
	code := wasm(
		section(typeSection, functionType("", string([]byte{i32}))),
		section(functionSection, []byte{0}),
		section(memorySection, []byte{1, 2, 9}),
		section(exportSection, append(str("grow"), 0, 0)),
		section(codeSection, []byte{6, 0, i32const, 5, 0x40, 0, end}),
	)
	for _, config := range []wazero.RuntimeConfig{wazero.NewRuntimeConfigCompiler(), wazero.NewRuntimeConfigInterpreter()} {
		r := wazero.NewRuntimeWithConfig(t.Context(), config)
		m := reserved(t, 2, 9, always)
		instance, err := r.InstantiateWithConfig(experimental.WithMemoryAllocator(t.Context(), m.allocator()), code, wazero.NewModuleConfig())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []uint64{2, math.MaxUint32} {
			got, err := instance.ExportedFunction("grow").Call(t.Context())
			if err != nil || got[0] != want {
				t.Errorf("got %v, %v: want %d", got, err, want)
			}
		}
		if m.usable != 7*wasmPage {
			t.Errorf("%d bytes are in use, want 7 pages", m.usable)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.reserved != nil {
			t.Error("it was not given back")
		}
	}
}

// growing is a function that grows its memory by single pages, to 4000.
func growing() []byte {
	return wasm(
		section(typeSection, functionType("", "")),
		section(functionSection, []byte{0}),
		section(memorySection, []byte{0, 1}),
		section(exportSection, append(str("_start"), 0, 0)),
		// loop; memory.grow 1; memory.size; 4000; i32.lt_u; br_if 0
		section(codeSection, []byte{18, 0, 3, 0x40, i32const, 1, 0x40, 0, 0x1a, 0x3f, 0, i32const, 0xa0, 0x1f, 0x49, 0x0d, 0, end, end}),
	)
}

// What RATIONALE.md says of an allocator of our own.
func BenchmarkGrowing(b *testing.B) {
	for _, name := range []string{"wazero", "reserved"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				ctx := b.Context()
				if name == "reserved" {
					m, err := reserve(wasmPage, 4<<30, always)
					if err != nil {
						b.Fatal(err)
					}
					ctx = experimental.WithMemoryAllocator(ctx, m.allocator())
				}
				r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
				if _, err := r.InstantiateWithConfig(ctx, growing(), wazero.NewModuleConfig()); err != nil {
					b.Fatal(err)
				}
				r.Close(ctx)
			}
			var used unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(used.Maxrss)/1024, "MiB-peak")
		})
	}
}
