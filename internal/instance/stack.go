package instance

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/tetratelabs/wazero/api"
	"golang.org/x/sys/unix"
)

// maxStack is how deep a guest's calls may go in bytes of stack, without a limit
// of memory. It is what wazero's own stack can become.
const maxStack = 84 << 20

// engineStack is more than the stack that wazero still makes larger: from there on
// more of it is a trap.
const engineStack = 50000000 + 1

// errEngine is of a wazero that this program was not made for.
var errEngine = errors.New("a field of the engine's is not where it is expected")

// setStack has the calls of f, a function of a guest, be made on a stack of size bytes at
// most: what goes deeper traps. The pages of it that are used take memory.
//
// wazero begins with a small one and makes it twice as large whenever it is full,
// until that is a trap, for which there is no setting: by then two are in use, of
// 126 MB together. It takes one that is large already as it is. The fields are
// wazero's own; should they become others this is errEngine, which a test is for.
func setStack(f api.Function, size uint64) error {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return errEngine
	}
	v = v.Elem()
	stack, top, ctx := v.FieldByName("stack"), v.FieldByName("stackTop"), v.FieldByName("execCtx")
	if !stack.IsValid() || !top.IsValid() || ctx.Kind() != reflect.Struct {
		return errEngine
	}
	bottom := ctx.FieldByName("stackBottomPtr")
	if stack.Type() != reflect.TypeFor[[]byte]() || top.Kind() != reflect.Uintptr || !bottom.IsValid() || bottom.Type() != reflect.TypeFor[*byte]() {
		return errEngine
	}
	page := uint64(unix.Getpagesize())
	size = max(size/page, 16) * page
	space := (max(size+page, engineStack) + page - 1) / page * page
	b, err := unix.Mmap(-1, 0, int(space), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("stack: %w", err)
	}
	// What the engine does about a full stack takes some bytes more of it.
	begin := space - size
	if err := unix.Mprotect(b[begin-page:], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		_ = unix.Munmap(b) // of what Mmap gave
		return fmt.Errorf("stack: %w", err)
	}
	// It stays for as long as the process.
	*(*[]byte)(unsafe.Pointer(stack.UnsafeAddr())) = b
	*(*uintptr)(unsafe.Pointer(top.UnsafeAddr())) = uintptr(unsafe.Pointer(&b[space-1])) &^ 15
	*(**byte)(unsafe.Pointer(bottom.UnsafeAddr())) = &b[begin]
	return nil
}
