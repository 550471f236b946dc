module observed

go 1.24

require github.com/containerd-shim-wazero/containerd-shim-wazero/bindings/go v0.0.0

replace github.com/containerd-shim-wazero/containerd-shim-wazero/bindings/go => ../../../../bindings/go
