package instance

import (
	"context"
	"encoding/binary"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// An environ is a guest's environment, as WASI has it: "KEY=VALUE" and a NUL each.
//
// It takes the place of wazero's, which is made of one variable at a time and copied
// for each: the 7000 that the services of a large namespace make took 2.7 s.
type environ struct {
	text   []byte
	starts []uint32 // where each begins in text
}

// newEnviron keeps the last of each name, in the place of the first.
func newEnviron(env []string) *environ {
	last := make(map[string]string, len(env))
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		last[name] = value
	}
	e := &environ{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		value, ok := last[name]
		if !ok {
			continue
		}
		delete(last, name)
		e.starts = append(e.starts, uint32(len(e.text)))
		e.text = append(append(append(append(e.text, name...), '='), value...), 0)
	}
	return e
}

// add adds variables that are not among those there are. The guest must not run yet.
func (e *environ) add(env []string) {
	for _, kv := range env {
		e.starts = append(e.starts, uint32(len(e.text)))
		e.text = append(append(e.text, kv...), 0)
	}
}

// errnoFault is WASI's EFAULT: the guest gave a place that it does not have.
const errnoFault = 21

// export defines WASI's two functions for it.
//
// See https://github.com/WebAssembly/WASI/blob/snapshot-01/phases/snapshot/docs.md#environ_get.
func (e *environ) export(b wazero.HostModuleBuilder) {
	for name, write := range map[string]func(m api.Memory, first, second uint32) bool{
		"environ_sizes_get": func(m api.Memory, count, size uint32) bool {
			return m.WriteUint32Le(count, uint32(len(e.starts))) && m.WriteUint32Le(size, uint32(len(e.text)))
		},
		"environ_get": func(m api.Memory, pointers, text uint32) bool {
			to, ok := m.Read(pointers, 4*uint32(len(e.starts)))
			if !ok || !m.Write(text, e.text) {
				return false
			}
			for i, start := range e.starts {
				binary.LittleEndian.PutUint32(to[4*i:], text+start)
			}
			return true
		},
	} {
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
			first, second := api.DecodeU32(stack[0]), api.DecodeU32(stack[1])
			stack[0] = errnoFault
			if write(mod.Memory(), first, second) {
				stack[0] = 0
			}
		}), []api.ValueType{api.ValueTypeI32, api.ValueTypeI32}, []api.ValueType{api.ValueTypeI32}).Export(name)
	}
}
