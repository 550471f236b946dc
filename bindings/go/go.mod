module github.com/containerd-shim-wazero/containerd-shim-wazero/bindings/go

go 1.24
