//go:build wasip1

package observe

//go:wasmimport dylibso:observe/api span-enter
func spanEnter(name string)

//go:wasmimport dylibso:observe/api span-exit
func spanExit()

//go:wasmimport dylibso:observe/api span-tags
func spanTags(tags string)

//go:wasmimport dylibso:observe/api log
func log(level uint32, message string)

//go:wasmimport dylibso:observe/api metric
func metric(format uint32, message string)
