package instance

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/tetratelabs/wazero"
)

// counting is a function that counts in its memory how often it has called itself,
// for ever.
func counting() []byte {
	body := []byte{
		0, i32const, 0, i32const, 0, 0x28, 2, 0, i32const, 1, 0x6a, 0x36, 2, 0, // mem[0] = mem[0] + 1
		call1, 0, end,
	}
	return wasm(
		section(typeSection, functionType("", "")),
		section(functionSection, []byte{0}),
		section(memorySection, []byte{0, 1}),
		section(exportSection, append(str("f"), 0, 0), append(str("memory"), 2, 0)),
		section(codeSection, append([]byte{byte(len(body))}, body...)),
	)
}

// That it is where it is expected is also what holds when wazero is updated.
func TestAStackIsAsLargeAsItIsSetTo(t *testing.T) {
	depth := func(set uint64) uint64 {
		t.Helper()
		r := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigCompiler())
		defer r.Close(t.Context())
		m, err := r.InstantiateWithConfig(t.Context(), counting(), wazero.NewModuleConfig())
		if err != nil {
			t.Fatal(err)
		}
		f := m.ExportedFunction("f")
		if err := setStack(f, set); err != nil {
			t.Fatal(err)
		}
		var n uint32
		for range 2 { // a function can be called again after a trap
			if _, err := f.Call(t.Context()); err == nil {
				t.Fatal("no trap")
			}
			b, _ := m.Memory().Read(0, 4)
			n = binary.LittleEndian.Uint32(b) - n
		}
		return uint64(n)
	}
	// What a call takes: two depths, so that what others take does not count.
	frame := float64(16<<20-1<<20) / float64(depth(16<<20)-depth(1<<20))
	if frame < 16 || frame > 256 {
		t.Errorf("a call takes %.3f bytes", frame)
	}
	for _, size := range []uint64{64 << 10, 1 << 20, engineStack, maxStack} {
		n := depth(size)
		if used := float64(n) * frame; used > float64(size) || used < float64(size)*0.9 {
			t.Errorf("%d calls, which take %.0f bytes, on a stack of %d", n, used, size)
		}
	}
}

func TestAnUnknownEngineKeepsItsStack(t *testing.T) {
	r := newTestRuntime(t) // the interpreter
	m, err := r.Instantiate(t.Context(), counting())
	if err != nil {
		t.Fatal(err)
	}
	f := m.ExportedFunction("f")
	if err := setStack(f, 1<<20); !errors.Is(err, errEngine) {
		t.Errorf("got %v, want %v", err, errEngine)
	}
	if err := setStack(nil, 1<<20); !errors.Is(err, errEngine) {
		t.Errorf("nil: got %v, want %v", err, errEngine)
	}
	if _, err := f.Call(t.Context()); err == nil {
		t.Error("no trap")
	}
}
