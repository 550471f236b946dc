package instance

import (
	"context"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// observeModule is what a guest imports to make spans of its own: see
// docs/telemetry.md, "Spans of a guest".
//
// See https://github.com/dylibso/observe-sdk.
const observeModule = "dylibso:observe/api"

// exportObserve defines the functions of [observeModule]. They do nothing where to is
// nil. Memory tells whether the guest has one: without, there is no text it can send.
//
// None of them ever fails: a text that is not in the guest's memory is a call that is
// dropped.
func exportObserve(b wazero.HostModuleBuilder, to *relay.Guest, memory bool) {
	// text is nil where there is none; an empty one is not.
	text := func(mod api.Module, at, size uint64) []byte {
		if to == nil || !memory {
			return nil
		}
		s, _ := mod.Memory().Read(api.DecodeU32(at), api.DecodeU32(size))
		return s
	}
	export := func(name string, parameters int, f api.GoModuleFunc) {
		types := []api.ValueType{api.ValueTypeI32, api.ValueTypeI32, api.ValueTypeI32}[:parameters]
		b.NewFunctionBuilder().WithGoModuleFunction(f, types, nil).Export(name)
	}
	export("span-enter", 2, func(_ context.Context, mod api.Module, stack []uint64) {
		to.Enter(text(mod, stack[0], stack[1]))
	})
	export("span-exit", 0, func(context.Context, api.Module, []uint64) { to.Exit() })
	export("span-tags", 2, func(_ context.Context, mod api.Module, stack []uint64) {
		to.Tags(text(mod, stack[0], stack[1]))
	})
	export("log", 3, func(_ context.Context, mod api.Module, stack []uint64) {
		to.Log(api.DecodeU32(stack[0]), text(mod, stack[1], stack[2]))
	})
	export("metric", 3, func(_ context.Context, mod api.Module, stack []uint64) {
		to.Metric(api.DecodeU32(stack[0]), text(mod, stack[1], stack[2]))
	})
}
