;; Two functions that call each other by way of a table, for ever.
(module
  (type $t (func (param i32) (result i32)))
  (table 2 funcref) (elem (i32.const 0) $f $g)
  (func $f (type $t) (i32.add (call_indirect (type $t) (local.get 0) (i32.const 1)) (i32.const 1)))
  (func $g (type $t) (i32.add (call_indirect (type $t) (local.get 0) (i32.const 0)) (i32.const 2)))
  (func (export "_start") (drop (call $f (i32.const 0)))))
