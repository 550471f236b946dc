# containerd-shim-wazero-v1. "make" alone lists the targets.

GO          ?= go
PREFIX      ?= /usr/local
DESTDIR     ?=
TEST_FLAGS  ?=
MODULE      ?=
IMAGE_FLAGS ?=
BENCH_FLAGS ?=
FUZZTIME    ?= 20000x

version := $(shell git describe --tags --always --dirty --abbrev=12 2>/dev/null || echo unknown)
revision := $(shell git rev-parse HEAD 2>/dev/null)
module  := github.com/containerd-shim-wazero/containerd-shim-wazero
shim    := bin/containerd-shim-wazero-v1
# The kernel enters the program there: see internal/shim/entry.
entry   := -E containerd_shim_wazero_entry
ldflags := -s -w -X $(module)/internal/shim.version=$(version) -X $(module)/internal/shim.revision=$(revision)
sources := $(shell find cmd internal -name '*.go' -o -name '*.s') go.mod go.sum tools/build-shim

# The pinned programs that tests, demo and benchmark use; each has a module of
# its own below tools/, which keeps them out of the shim's go.mod.
containerd := bin/containerd bin/ctr bin/containerd-shim-runc-v2
cni        := bin/cni/bridge bin/cni/host-local bin/cni/loopback
kubernetes := bin/etcd bin/kube-apiserver bin/kubelet
lint       := bin/golangci-lint
comma      := ,

# The other versions of containerd in use, for a test that runs on each.
others := $(addprefix bin/containerd-,1.7 2.0 2.1 2.2 2.3)

# The demo takes an installed containerd, if that is of a version the shim knows.
installed       := $(shell containerd --version 2>/dev/null | grep -E ' v?2\.4\.')
demo_containerd := $(if $(installed),,bin/containerd bin/ctr)

wat    := $(patsubst test/guests/wat/%.wat,bin/guests/%.wasm,$(wildcard test/guests/wat/*.wat))
guests := $(wat) bin/guests/probe.wasm bin/guests/hello-go.wasm bin/guests/hello-c.wasm bin/guests/files-c.wasm bin/guests/cat-c.wasm bin/guests/wasi-c.wasm bin/guests/preview1-c.wasm bin/guests/memory-c.wasm bin/guests/limits-c.wasm bin/guests/observe-go.wasm bin/guests/observe-c.wasm bin/guests/observe-rust.wasm bin/guests/work.wasm bin/guests/work-static bin/guests/hello-static bin/guests/pause-static bin/guests/neighbour-static bin/guests/busybox bin/guests/esbuild.wasm bin/guests/esbuild bin/logger bin/libseccomp

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "%-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(shim) ## build the shim: one static binary in bin/

$(shim): $(sources)
	GO='$(GO)' tools/build-shim $@ '$(ldflags)'

image: bin/image ## make an OCI archive of a module: MODULE=app.wasm, and IMAGE_FLAGS='-form artifact -name ...'
	@[ -n '$(MODULE)' ] || { echo 'make image: which one? MODULE=app.wasm'; exit 1; }
	@bin/image $(IMAGE_FLAGS) $(MODULE)

bin/image: $(wildcard tools/image/*.go) tools/image/go.mod tools/image/go.sum internal/module/entry.go
	cd tools/image && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o ../../$@ .

install: build ## install it below PREFIX (/usr/local), as root; DESTDIR is heeded
	install -D -m 0755 $(shim) $(DESTDIR)$(PREFIX)/bin/containerd-shim-wazero-v1

dist: ## pack a release for amd64 and arm64 with its checksums, in dist/; the same commit gives the same bytes
	GO='$(GO)' VERSION='$(version)' LDFLAGS='$(ldflags)' tools/dist

dist-check: | qemu ## build it twice, from two clones, one with nothing cached, and hold the two against each other
	tools/dist-check

demo: build $(demo_containerd) bin/guests/probe.wasm ## run a module under a private containerd, print its trace; needs root
	@$(GO) run ./test/demo -bin bin

test: build bin/attack/containerd-shim-wazero-v1 $(containerd) $(others) bin/runc $(cni) bin/image guests ## run all tests, under a real containerd and the race detector; needs root
	@[ "$$(id -u)" = 0 ] || { echo 'make test: needs root, for containerd and mounts: run it with sudo'; exit 1; }
	$(GO) vet ./...
	cd tools/image && $(GO) vet . && $(GO) test -race -count=1 .
	TEST_ROOT=1 $(GO) run ./test/contract -o bin/results/test.json $(GO) test -json -race -count=1 -timeout 40m $(TEST_FLAGS) ./...
	$(if $(TEST_FLAGS),,@$(GO) run ./test/contract -points 37 -doc docs/security.md bin/results/*.json)

test-race: build bin/attack/containerd-shim-wazero-v1 bin/race/containerd-shim-wazero-v1 $(containerd) $(others) bin/runc $(cni) bin/image guests ## the same tests on a shim built with the race detector; needs root
	TEST_ROOT=1 TEST_SHIM=$(CURDIR)/bin/race $(GO) test -count=1 -timeout 40m $(TEST_FLAGS) ./test/

# One whose instance processes run native code in place of the guest: the engine
# is broken, and what holds are the walls.
bin/attack/containerd-shim-wazero-v1: $(sources)
	CGO_ENABLED=0 $(GO) build -trimpath -tags attack -ldflags '$(entry)' -o $@ ./cmd/containerd-shim-wazero-v1

bin/race/containerd-shim-wazero-v1: $(sources) | cc
	CGO_ENABLED=1 $(GO) build -race -o $@ ./cmd/containerd-shim-wazero-v1

test-cgroup2: build $(containerd) bin/runc guests bin/systemd ## those that matter there on cgroup v2 and systemd, in a throw-away guest; needs root
	tools/cgroup2/run

test-selinux: build $(containerd) bin/runc guests ## those of SELinux, on a kernel that enforces a policy, in a throw-away guest; needs root
	tools/cgroup2/selinux

bin/systemd: tools/cgroup2/systemd-root
	tools/cgroup2/systemd-root $@
	touch $@

test-kubernetes: build $(containerd) bin/runc $(cni) $(kubernetes) guests ## run pods on a real kubelet, with etcd and the API server; needs root
	cd test/kubernetes && $(GO) vet . && $(GO) test -count=1 -timeout 20m -parallel 8 $(TEST_FLAGS) .

test-arm64: bin/libseccomp | qemu ## build and vet for arm64, and run the packages' own tests under qemu-user; needs root
	tools/arm64/test

test-jaeger: build $(containerd) bin/runc bin/jaeger guests ## run containers traced to a real Jaeger, and ask that; needs root
	cd test && TEST_ROOT=1 TEST_JAEGER=1 $(GO) test -count=1 -timeout 10m $(TEST_FLAGS) -run Jaeger .

# By number, not by time: when a time is over Go 1.26 may call that a failure
# (golang/go#75804).
fuzz: ## look for input that breaks what reads it, FUZZTIME (20000x) tries for each reader
	@for package in $$($(GO) list ./internal/...); do for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
		echo "=== $$target, $$package"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s $$package || exit 1; done; done

bench: build bin/nowalls/containerd-shim-wazero-v1 bin/symbols/containerd-shim-wazero-v1 $(containerd) bin/runc bin/wazero guests ## time it beside containerd's runc shim, in one run; needs root
	@$(GO) run ./test/bench -bin bin -o bin/bench.jsonl $(BENCH_FLAGS)

lint: $(lint) | shellcheck ## run the linters
	shellcheck -S warning deploy/install $$(grep -lE '^#!(/usr/bin/env bash|/bin/sh)' tools/* tools/*/* .ci/run 2>/dev/null)
	$(lint) run ./...
	cd test/kubernetes && ../../$(lint) run ./...
	cd tools/image && ../../$(lint) run ./...
	cd bindings/go && ../../$(lint) run ./... && GOOS=wasip1 GOARCH=wasm ../../$(lint) run ./...

# Those that would do nothing else on a shim with the race detector: the engine that is
# broken has a shim of its own, the installer only copies one, and what takes long in the
# others is the guest, whose process is the ordinary one.
once := IfTheEngineBroke|WithoutTheFilter|TheAttacksWork|TheSystemCallsThatPass|Installer|ANodeWithoutAConfiguration|ARestartThatFailed|InfiniteRecursion|AProgramNobodyHereWrote
test-race: TEST_FLAGS += -skip '$(once)'

clean: ## remove what was built
	rm -rf bin dist

bin/containerd bin/ctr bin/containerd-shim-runc-v2: tools/containerd/go.mod tools/containerd/go.sum
	cd tools/containerd && $(GO) build -trimpath -ldflags '-s -w' -tags no_btrfs,no_devmapper,no_zfs -o ../../bin/ github.com/containerd/containerd/v2/cmd/$(@F)

# Without what the tests do not use: the CRI plugin, which 1.7 has the installer tried
# with, is half of it.
$(others): bin/containerd-%: tools/containerd-%/go.mod tools/containerd-%/go.sum
	cd tools/containerd-$* && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -tags $(if $(filter 1.7,$*),,no_cri$(comma))no_btrfs,no_devmapper,no_zfs,no_aufs,no_tracing \
		-o ../../$@ github.com/containerd/containerd$(if $(filter 1.7,$*),,/v2)/cmd/containerd

# With seccomp: the kubelet wants a profile for the first container of every pod.
bin/runc: tools/runc/go.mod tools/runc/go.sum | cc seccomp
	cd tools/runc && CGO_ENABLED=1 $(GO) build -trimpath -tags seccomp,netgo,osusergo -ldflags '-s -w -extldflags -static' -o ../../bin/ github.com/opencontainers/runc

$(cni) &: tools/cni/go.mod tools/cni/go.sum
	cd tools/cni && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o ../../bin/cni/ tool

# etcd is of the version that this Kubernetes itself is tested with.
bin/etcd: tools/kubernetes/go.mod tools/kubernetes/go.sum
	cd tools/kubernetes && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o ../../$@ go.etcd.io/etcd/server/v3

bin/kube-apiserver bin/kubelet: tools/kubernetes/go.mod tools/kubernetes/go.sum
	cd tools/kubernetes && CGO_ENABLED=0 $(GO) build -trimpath -o ../../bin/ \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)" k8s.io/kubernetes/cmd/$(@F)

bin/jaeger: tools/jaeger/go.mod tools/jaeger/go.sum
	cd tools/jaeger && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o ../../$@ github.com/jaegertracing/jaeger/cmd/jaeger

bin/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	cd tools/lint && $(GO) build -o ../../bin/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# What the benchmark compares with, to see what the walls cost.
bin/nowalls/containerd-shim-wazero-v1: $(sources)
	GO='$(GO)' tools/build-shim $@ '-s -w' nowalls

# The shim as it is shipped, with the symbols that say what is in it.
bin/symbols/containerd-shim-wazero-v1: $(sources)
	GO='$(GO)' tools/build-shim $@ ''

performance: ## put what "make bench" has measured into the documentation
	@$(GO) run ./test/bench -write docs/performance.md,README.md $(or $(BENCH_OUTPUT),bin/bench.jsonl)

guests: $(guests)

bin/guests/%.wasm: test/guests/wat/%.wat | wabt
	@mkdir -p $(@D)
	wat2wasm $< -o $@

bin/guests/probe.wasm: test/guests/probe/main.go
	GOOS=wasip1 GOARCH=wasm $(GO) build -o $@ ./test/guests/probe

bin/guests/hello-go.wasm: test/guests/hello/main.go
	GOOS=wasip1 GOARCH=wasm $(GO) build -o $@ ./test/guests/hello

bin/guests/%-c.wasm: test/guests/c/%.c | clang
	@mkdir -p $(@D)
	clang --target=wasm32-wasi -O2 -Wall -o $@ $<

# The same guest by each of the bindings.
bin/guests/observe-go.wasm: test/guests/observe/go/main.go $(wildcard bindings/go/*.go)
	cd $(<D) && GOOS=wasip1 GOARCH=wasm $(GO) build -o ../../../../$@ .

bin/guests/observe-c.wasm: test/guests/observe/c/main.c bindings/c/observe.h | clang
	@mkdir -p $(@D)
	clang --target=wasm32-wasi -O2 -Wall -Ibindings/c -o $@ $<

bin/guests/observe-rust.wasm: test/guests/observe/rust/main.rs bindings/rust/src/lib.rs | rust
	@mkdir -p $(@D)
	tools/wasm-rustc --edition 2021 -O --crate-type rlib --crate-name wazero_observe -o $(@D)/libwazero_observe.rlib bindings/rust/src/lib.rs
	tools/wasm-rustc --edition 2021 -O -C strip=symbols --extern wazero_observe=$(@D)/libwazero_observe.rlib -o $@ $<

bin/logger: test/logger/main.go go.mod
	CGO_ENABLED=0 $(GO) build -o $@ ./test/logger

# Work to be timed: the same source as a module and as a program.
bin/guests/work.wasm: test/guests/work/work.c | clang
	@mkdir -p $(@D)
	clang --target=wasm32-wasi -O2 -Wall -o $@ $<

bin/guests/work-static: test/guests/work/work.c | cc
	@mkdir -p $(@D)
	cc -O2 -Wall -ffp-contract=off -static -s -o $@ $< -lm

# The engine's own command, of the version that the shim has, and built as it is.
bin/wazero: go.mod go.sum
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ github.com/tetratelabs/wazero/cmd/wazero

bin/guests/%-static: test/guests/c/%.c | cc
	@mkdir -p $(@D)
	cc -O2 -static -s -o $@ $<

# libseccomp, for the filters to be compared with its own.
bin/libseccomp: internal/sandbox/seccomp/testdata/libseccomp.c | cc seccomp
	cc -O2 -Wall -static -o $@ $< -lseccomp

bin/guests/busybox: | busybox
	@mkdir -p $(@D)
	cp $$(command -v busybox) $@

# A program that nobody here wrote, and what it does on Linux to compare with.
bin/guests/esbuild.wasm: tools/esbuild/go.mod
	cd tools/esbuild && GOOS=wasip1 GOARCH=wasm $(GO) build -trimpath -ldflags '-s -w' -o ../../$@ github.com/evanw/esbuild/cmd/esbuild

bin/guests/esbuild: tools/esbuild/go.mod
	cd tools/esbuild && $(GO) build -trimpath -ldflags '-s -w' -o ../../$@ github.com/evanw/esbuild/cmd/esbuild

# Programs from the distribution, installed where they are missing.
wabt clang rust cc busybox seccomp qemu shellcheck:
	@tools/packages $@

transcript: build $(containerd) bin/guests/probe.wasm ## put the demo's transcript into the README; needs root
	@$(GO) run ./test/demo -bin bin >bin/transcript && tools/transcript README.md bin/transcript

picture: build $(containerd) bin/jaeger bin/guests/probe.wasm ## trace a container to Jaeger, and draw that trace for the documentation; needs root
	cd test && TEST_ROOT=1 TEST_JAEGER=1 TEST_JAEGER_TRACE=$(CURDIR)/docs/trace.json $(GO) test -count=1 -run 'JaegerHasTheWholeLife.*/grpc' .
	$(GO) run ./test/picture docs/trace.json >docs/trace.svg

.PHONY: help build install dist dist-check demo performance test test-arm64 test-race test-cgroup2 test-selinux test-kubernetes test-jaeger transcript picture fuzz bench image lint clean guests wabt clang rust cc busybox seccomp qemu shellcheck
.DEFAULT_GOAL := help
