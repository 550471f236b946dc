;; Calls itself for ever before _start could be called.
(module (func $f call $f) (start $f) (func (export "_start")))
