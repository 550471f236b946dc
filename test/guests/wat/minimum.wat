;; Has 100 MiB from the beginning, of which it touches nothing.
(module (memory (export "memory") 1600) (func (export "_start")))
