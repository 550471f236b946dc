;; Functions for path#func: each exits with a status of its own.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (global $ready (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $ready (i32.const 40)))
  (func (export "_start") (call $exit (i32.const 10)))
  (func (export "two") (call $exit (i32.add (global.get $ready) (i32.const 2))))
  (func (export "returns") (result i32) (i32.const 5))
  (func (export "takes") (param i32)))
