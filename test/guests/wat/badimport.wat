(module (import "env" "missing" (func)) (memory (export "memory") 1) (func (export "_start")))
