package instance

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

func observeHost(t testing.TB, r wazero.Runtime, to *relay.Guest, memory bool) wazero.CompiledModule {
	t.Helper()
	b := r.NewHostModuleBuilder(observeModule)
	exportObserve(b, to, memory)
	m, err := b.Compile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTheFunctionsOfTheObserveAPIAreProvidedAndNoOthers(t *testing.T) {
	r := newTestRuntime(t)
	host := observeHost(t, r, nil, true)
	for name, want := range map[string]string{
		"span-enter": "(i32, i32) -> ()", "span-exit": "() -> ()", "span-tags": "(i32, i32) -> ()",
		"log": "(i32, i32, i32) -> ()", "metric": "(i32, i32, i32) -> ()",
	} {
		f, ok := host.ExportedFunctions()[name]
		if !ok || signature(f) != want {
			t.Errorf("%s is not %s", name, want)
		}
	}
	for _, tt := range []struct{ from, name string }{
		{observeModule, "span_enter"}, {observeModule, "log"}, // of one parameter
		{"dylibso_observe", "span_enter"}, {"dylibso:observe/instrument", "enter"},
	} {
		code := importing(tt.from, tt.name, 0, 0)
		if err := checkImports(code, compiledFor(t, r, code), host); err == nil {
			t.Errorf("%s of %s: got no error", tt.name, tt.from)
		}
	}
}

// calling is a module that imports a function with the given number of parameters and,
// as f, calls it with them. It has a memory of one page, with a text at 0.
func calling(name string, memory bool, params ...uint32) []byte {
	types := bytes.Repeat([]byte{i32}, len(params))
	body := []byte{0}
	for _, p := range params {
		body = append(append(body, i32const), signed(int32(p))...)
	}
	body = append(body, call1, 0, end)
	sections := [][]byte{
		section(typeSection, functionType(string(types), ""), functionType("", "")),
		section(importSection, slices.Concat(str(observeModule), str(name), []byte{0, 0})),
		section(functionSection, []byte{1}),
	}
	if memory {
		sections = append(sections, section(memorySection, []byte{0, 1}))
	}
	sections = append(sections,
		section(exportSection, append(str("f"), 0, 1)),
		section(codeSection, append(binary.AppendUvarint(nil, uint64(len(body))), body...)))
	if memory {
		sections = append(sections, section(11, slices.Concat([]byte{0, i32const, 0, end}, str("a text"))))
	}
	return wasm(sections...)
}

// signed is a number as the binary format has it.
func signed(v int32) (b []byte) {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// Whatever a guest gives: it goes on, and what is not in its memory is dropped.
func TestNoArgumentOfAnObserveCallIsATrap(t *testing.T) {
	const page = 64 << 10
	for _, tt := range []struct {
		name   string
		memory bool
		params []uint32
		want   string // what is sent
		drops  int64
	}{
		{"span-enter", true, []uint32{0, 6}, "a text", 0},
		{"log", true, []uint32{9, 2, 4}, "text", 0},
		{"metric", true, []uint32{1, 0, 1}, "a", 0},
		{"span-tags", true, []uint32{page, 0}, "", 0},
		{"span-enter", true, []uint32{page, 1}, "", 1},
		{"span-enter", true, []uint32{page - 1, 2}, "", 1},
		{"log", true, []uint32{1, 0xffffffff, 0xffffffff}, "", 1},
		{"metric", true, []uint32{1, 1, 0xffffffff}, "", 1},
		{"span-tags", true, []uint32{0xffffffff, 1}, "", 1},
		{"span-exit", true, nil, "", 0},
		{"span-enter", false, []uint32{0, 0}, "", 1},
		{"log", false, []uint32{1, 0, 6}, "", 1},
	} {
		r := newTestRuntime(t)
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer pr.Close()
		to, err := relay.NewGuest(pw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.InstantiateModule(t.Context(), observeHost(t, r, to, tt.memory), wazero.NewModuleConfig()); err != nil {
			t.Fatal(err)
		}
		m, err := r.Instantiate(t.Context(), calling(tt.name, tt.memory, tt.params...))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.ExportedFunction("f").Call(t.Context()); err != nil {
			t.Errorf("%s%v: %v", tt.name, tt.params, err)
		}
		if got := to.Dropped(); got != tt.drops {
			t.Errorf("%s%v: dropped %d, want %d", tt.name, tt.params, got, tt.drops)
		}
		to.Close()
		var f relay.GuestFrame
		if line, err := bufio.NewReader(pr).ReadBytes('\n'); err == nil {
			if err := json.Unmarshal(line, &f); err != nil {
				t.Fatal(err)
			}
		}
		if f.Text != tt.want {
			t.Errorf("%s%v: got %+v, want %q", tt.name, tt.params, f, tt.want)
		}
	}
}

func TestVariablesCanBeAddedToAnEnvironment(t *testing.T) {
	e := newEnviron([]string{"A=1"})
	e.add([]string{"TRACEPARENT=00", "BAGGAGE=a=b"})
	if got, want := string(e.text), "A=1\x00TRACEPARENT=00\x00BAGGAGE=a=b\x00"; got != want || !slices.Equal(e.starts, []uint32{0, 4, 19}) {
		t.Errorf("got %q %v, want %q", got, e.starts, want)
	}
}
