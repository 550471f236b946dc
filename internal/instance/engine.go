package instance

import (
	"context"
	"errors"
	"io"
	"reflect"
	"slices"

	"github.com/tetratelabs/wazero"
)

// A codeKey is what the engine asks for compiled code by: a digest of the module's
// bytes, of its own version and settings, and of the processor's features.
type codeKey = [32]byte

// A codeCache is where the engine looks for compiled code, and puts it.
//
// It implements wazero's internal/filecache.Cache.
type codeCache struct {
	get func(codeKey) (io.ReadCloser, bool, error)
	add func(codeKey, io.Reader) error
}

// Get is called for each module that is to be compiled.
func (c *codeCache) Get(key codeKey) (io.ReadCloser, bool, error) { return c.get(key) }

// Add is called with what a module was compiled to that Get did not have.
func (c *codeCache) Add(key codeKey, code io.Reader) error { return c.add(key, code) }

// Delete is called for code of another version of the engine.
func (c *codeCache) Delete(codeKey) error { return errOtherVersion }

var (
	errOtherVersion = errors.New("it is another version's")
	errMiss         = errors.New("it is another module's, or another processor's")
)

// newRuntime is the engine, set up the same for compiling and for running: compiled
// code fits only the settings it was made with.
//
// wazero's own cache is a directory: it reads the number of each function from it
// by a system call, copies the code, and takes the code for that of the very bytes
// it has been given, which it decodes and validates again. To have it use another one
// takes a field of its own: see RATIONALE.md, "What is in an entry of the compile
// cache?". Should it become another this is errEngine, and nothing would run.
func newRuntime(ctx context.Context, code *codeCache) (wazero.Runtime, error) {
	cache := wazero.NewCompilationCache()
	v := reflect.ValueOf(cache)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil, errEngine
	}
	field := v.Elem().FieldByName("fileCache")
	if !field.IsValid() || field.Kind() != reflect.Interface || !reflect.TypeOf(code).Implements(field.Type()) {
		return nil, errEngine
	}
	reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().Set(reflect.ValueOf(code))
	// Never the interpreter, which NewRuntimeConfig falls back to in silence.
	// DWARF multiplies the time to load a module.
	return wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().
		WithCompilationCache(cache).
		WithDebugInfoEnabled(false)), nil
}

// exportOnly has a host module have, of its functions, those that m imports of it: the
// engine compiles a trampoline for each, and of WASI's 46 a guest has use for a few.
//
// The field is wazero's own. Should it become another this is errEngine, which a test is
// for, and all of them are there.
func exportOnly(b wazero.HostModuleBuilder, module string, m wazero.CompiledModule) error {
	v := reflect.ValueOf(b)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return errEngine
	}
	field := v.Elem().FieldByName("exportNames")
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]string]() {
		return errEngine
	}
	imported := map[string]bool{}
	for _, f := range m.ImportedFunctions() {
		if from, name, _ := f.Import(); from == module {
			imported[name] = true
		}
	}
	names := (*[]string)(field.Addr().UnsafePointer())
	*names = slices.DeleteFunc(*names, func(name string) bool { return !imported[name] })
	return nil
}
