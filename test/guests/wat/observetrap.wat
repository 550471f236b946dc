;; Traps within a span.
(module
  (import "dylibso:observe/api" "span-enter" (func $enter (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "fatal")
  (func (export "_start")
    (call $enter (i32.const 0) (i32.const 5))
    unreachable))
