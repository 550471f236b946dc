package test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// withMemory is a limit of memory, and of memory with swap.
func withMemory(mib int) oci.SpecOpts {
	limit := int64(mib) << 20
	return oci.Compose(oci.WithMemoryLimit(uint64(limit)), oci.WithMemorySwap(limit))
}

// smallest is the limit that a tiny module can run with, in MiB. Version 2 of cgroups
// counts more of what the kernel itself takes.
var smallest = map[bool]int{false: 4, true: 8}[cgroups.IsCgroup2UnifiedMode()]

// said is what a guest has said of something.
func said(t *testing.T, output, what string) int {
	t.Helper()
	for _, line := range slices.Backward(strings.Split(output, "\n")) {
		if v, ok := strings.CutPrefix(line, what+": "); ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("the guest said nothing of %q but %q", what, output)
	return 0
}

func TestMemoryOverTheLimitIsRefusedToAGuest(t *testing.T) {
	n := useNode(t)
	rec := record(t, n)
	events := func(t *testing.T, b *box) {
		t.Helper()
		if got, want := names(rec.of(b.ID(), 4)), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	}
	for _, tt := range []struct{ limit, least int }{{smallest + 4, 0}, {16, 2}, {32, 12}, {64, 35}, {256, 200}} {
		t.Run(fmt.Sprintf("C with %d MiB", tt.limit), func(t *testing.T) {
			b, status := run(t, n, app(t, n, "limits-c.wasm"), args("/app.wasm", "memory"), withMemory(tt.limit))
			if status != 0 {
				t.Fatalf("status %d, %q", status, b.stderr)
			}
			if got := said(t, b.stdout.String(), "mib"); got < tt.least || got > tt.limit {
				t.Errorf("malloc gave %d MiB, want %d to %d", got, tt.least, tt.limit)
			}
			events(t, b)
		})
	}
	for _, limit := range []int{48, 128} {
		t.Run(fmt.Sprintf("Go with %d MiB", limit), func(t *testing.T) {
			b, status := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "grow", "4", "grow", fmt.Sprint(limit)), withMemory(limit))
			if status != 2 || !strings.Contains(b.stderr.String(), "out of memory") || b.stdout.String() != "grown: 4\n" {
				t.Errorf("status %d, %q, %q: want a Go program that is out of memory", status, b.stdout, b.stderr)
			}
			events(t, b)
		})
	}
	t.Run("an exec", func(t *testing.T) {
		b := container(t, n, app(t, n, "limits-c.wasm"), args("/app.wasm", "again"), withMemory(64))
		b.mustCreate(t, true)
		b.mustStart(t)
		e, err := b.exec(t, "exec", nil, "/app.wasm", "memory")
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		if status := e.finish(t, b.ctx); status != 0 {
			t.Errorf("status %d", status)
		}
		if got := said(t, e.stdout.String(), "mib"); got < 35 || got > 64 {
			t.Errorf("malloc gave %d MiB, want 35 to 64", got)
		}
	})
}

func TestAGuestWithoutALimitHasWhatItAsksFor(t *testing.T) {
	n := useNode(t)
	memory := func(limit int64) oci.SpecOpts {
		return specOf(func(s *oci.Spec) { s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit} })
	}
	for name, opt := range map[string]oci.SpecOpts{
		"none": oci.Compose(), "-1": memory(-1), "0": memory(0), "over 4 GiB": memory(5 << 30),
	} {
		t.Run(name, func(t *testing.T) {
			b := container(t, n, app(t, n, "memory-c.wasm"), args("/app.wasm", "100"), opt)
			b.mustCreate(t)
			b.mustStart(t)
			b.says(t, "holding: 100")
		})
	}
}

func TestTheSmallestLimitThatATinyModuleRunsWith(t *testing.T) {
	n := useNode(t)
	b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), withMemory(smallest))
	if status != 0 || b.stdout.String() != "hello\n" {
		t.Errorf("status %d, %q, %q", status, b.stdout, b.stderr)
	}
}

func TestALimitThatAModuleCannotRunWithIsAnErrorOfCreate(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	t.Run("its memory is larger", func(t *testing.T) {
		b := container(t, n, app(t, n, "minimum.wasm"), args("/app.wasm"), withMemory(64))
		wantError(t, b.create(), errdefs.ErrInvalidArgument, "/app.wasm", "104857600", "67108864")
		b.remove()
	})
	t.Run("it cannot be loaded", func(t *testing.T) {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm"), interpreted, withMemory(8)) // compiled, that would do
		wantError(t, b.create(), errdefs.ErrInvalidArgument, "memory limit", "8388608")
		b.remove()
	})
	leaves(t, n, before)
	// With less room than the engine may need: it may touch little of its memory.
	if _, status := run(t, n, app(t, n, "minimum.wasm"), args("/app.wasm"), withMemory(101)); status != 0 {
		t.Errorf("status %d, want 0", status)
	}
}

func TestAnUpdateMovesTheBoundOfARunningGuest(t *testing.T) {
	n := useNode(t)
	limit := func(mib int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(mib << 20), Swap: ptr(mib << 20)}}
	}
	b := container(t, n, app(t, n, "limits-c.wasm"), args("/app.wasm", "again"), withMemory(64))
	b.mustCreate(t, true)
	b.mustStart(t)
	more := func() int {
		t.Helper()
		lines := strings.Count(b.stdout.String(), "\n")
		fmt.Fprintln(b.stdin)
		eventually(t, "an answer", func() bool { return strings.Count(b.stdout.String(), "\n") > lines })
		return said(t, b.stdout.String(), "more")
	}
	if got := more(); got < 35 || got > 64 {
		t.Errorf("%d MiB, want 35 to 64", got)
	}
	if got := more(); got != 0 {
		t.Errorf("%d MiB more without an update", got)
	}
	if err := update(b, limit(128)); err != nil {
		t.Fatal(err)
	}
	if got := more(); got < 40 || got > 64 {
		t.Errorf("%d MiB more with 64 MiB more, want 40 to 64", got)
	}
	if err := update(b, limit(512)); err != nil {
		t.Fatal(err)
	}
	if err := update(b, limit(130)); err != nil {
		t.Fatal(err)
	}
	if got := more(); got > 2 {
		t.Errorf("%d MiB more with 2 MiB more, want 2 at most", got)
	}
	e, err := b.exec(t, "exec", nil, "/app.wasm", "again") // which knows the limit of now
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	if status := e.finish(t, b.ctx); status != 0 {
		t.Errorf("exec: status %d", status)
	}
	if err := update(b, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-1), Swap: ptr[int64](-1)}}); err != nil {
		t.Fatal(err)
	}
	if err := update(b, limit(256)); err != nil {
		t.Fatal(err)
	}
	if got := more(); got < 90 || got > 130 {
		t.Errorf("%d MiB more with 126 MiB more, want 90 to 130", got)
	}
	b.stdin.Close()
	b.closeStdin(t)
	if got := b.exit(t); got != 0 {
		t.Errorf("status %d, want 0", got)
	}
}

func TestInfiniteRecursionIsATrap(t *testing.T) {
	n := useNode(t)
	for _, tt := range []struct {
		guest  string
		args   []string
		says   string
		limits []int
	}{
		{"recurse.wasm", nil, "stack overflow", []int{0, smallest, 16, 128}},
		{"recurseindirect.wasm", nil, "stack overflow", []int{0, 16}},
		{"recursehost.wasm", nil, "stack overflow", []int{0, 16}},
		{"limits-c.wasm", []string{"recurse"}, "out of bounds memory access", []int{0}}, // of C's own stack, in its memory
		{"limits-c.wasm", []string{"recurse"}, "stack overflow", []int{16}},
		{"probe.wasm", []string{"recurse"}, "stack overflow", []int{0, 128}},
		// What an instantiation calls has the engine's stack, which takes more.
		{"recursestart.wasm", nil, "stack overflow", []int{0, 192}},
	} {
		for _, limit := range tt.limits {
			t.Run(fmt.Sprintf("%s with %d MiB", tt.guest, limit), func(t *testing.T) {
				opts := []oci.SpecOpts{args(append([]string{"/app.wasm"}, tt.args...)...)}
				if limit > 0 {
					opts = append(opts, withMemory(limit))
				}
				b, status := run(t, n, app(t, n, tt.guest), opts...)
				if status != 134 || !strings.Contains(b.stderr.String(), tt.says) {
					t.Errorf("status %d, %.200q: want a trap that says %q", status, b.stderr, tt.says)
				}
			})
		}
	}
}

// Whatever a guest passes its host, it comes to an end that is the guest's own:
// an error, a trap, or more memory than its container may have.
func TestNoArgumentOfAGuestIsTooMuchForItsHost(t *testing.T) {
	n := useNode(t)
	for _, tt := range []struct {
		name, says string
		args       []string
		status     uint32
	}{
		{"counts and lengths over its memory", "fd_write: 21", []string{"calls"}, 0},
		{"a count that is none in 32 bits", "", []string{"subscriptions"}, 134},
		{"a path of 30 MiB", "", []string{"path", "30"}, 137},
		{"random bytes for all its memory", "random: 0", []string{"random", "30"}, 0},
		{"more files than it may open", "open: ", []string{"open", "/app.wasm"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, status := run(t, n, app(t, n, "limits-c.wasm"), args(append([]string{"/app.wasm"}, tt.args...)...), withMemory(64))
			if status != tt.status || !strings.Contains(b.stdout.String(), tt.says) {
				t.Errorf("status %d, %q, %q: want %d and %q", status, b.stdout, b.stderr, tt.status, tt.says)
			}
		})
	}
}

func TestTooFewPidsIsAnErrorOfCreate(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	for _, limit := range []int64{1, 2, 3} {
		b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"), oci.WithPidsLimit(limit))
		wantError(t, b.create(), errdefs.ErrInvalidArgument, "pids limit", fmt.Sprint(limit))
		b.remove()
	}
	leaves(t, n, before)
	b, status := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "ls", "/", "sleep", "1ms", "burst", "1000", "grow", "50"), oci.WithPidsLimit(16))
	if status != 0 {
		t.Errorf("with 16: status %d, %q", status, b.stderr)
	}
}

func TestAQuotaHoldsASpinningGuest(t *testing.T) {
	n := useNode(t)
	const period = 100 * time.Millisecond
	const quota = period / 5
	b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"), oci.WithCPUCFS(quota.Microseconds(), uint64(period.Microseconds())))
	b.mustCreate(t)
	b.mustStart(t)
	began, before := time.Now(), stats(t, b).cpu
	time.Sleep(20 * period)
	used, took := stats(t, b).cpu-before, time.Since(began)
	// As much in a period that has only begun, and what the kernel hands out in slices.
	if most := quota*(took/period+2) + 50*time.Millisecond; used > most {
		t.Errorf("%v of processor time in %v, want %v at most", used, took, most)
	}
	if used == 0 {
		t.Error("it did not run at all")
	}
}

func TestSharesDivideAProcessor(t *testing.T) {
	n := useNode(t)
	start := func(shares uint64) *box {
		b := container(t, n, app(t, n, "spin.wasm"), args("/app.wasm"), oci.WithCPUs("0"), oci.WithCPUShares(shares))
		b.mustCreate(t)
		b.mustStart(t)
		return b
	}
	little, much := start(256), start(1024)
	littleBefore, muchBefore := stats(t, little).cpu, stats(t, much).cpu
	var a, b time.Duration
	for range 600 { // whatever else runs on that processor
		time.Sleep(100 * time.Millisecond)
		a, b = stats(t, little).cpu-littleBefore, stats(t, much).cpu-muchBefore
		if a+b > 2*time.Second {
			break
		}
	}
	if ratio := float64(b) / float64(a); ratio < 2.5 || ratio > 6 {
		t.Errorf("%v and %v of processor time with shares of 1:4: %.1f times as much", a, b, ratio)
	}
}

// compileBomb is a small module that takes the compiler minutes and gigabytes: a
// function with a thousand blocks and a table of jumps out of them.
func compileBomb() []byte {
	const blocks, targets = 1000, 200000
	leb := binary.AppendUvarint
	body := []byte{0}
	body = append(body, strings.Repeat("\x02\x40", blocks)...)
	body = leb(append(body, 0x41, 0, 0x0e), targets)
	for i := range uint64(targets) {
		body = leb(body, i%blocks)
	}
	body = append(body, 0)
	body = append(body, strings.Repeat("\x0b", blocks+1)...)
	section := func(id byte, b []byte) []byte { return append(leb([]byte{id}, uint64(len(b))), b...) }
	return slices.Concat([]byte("\x00asm\x01\x00\x00\x00"),
		section(1, []byte{1, 0x60, 0, 0}), section(3, []byte{1, 0}), section(7, []byte("\x01\x06_start\x00\x00")),
		section(10, append(leb([]byte{1}, uint64(len(body))), body...)))
}

func TestAModuleThatIsTooMuchToCompileIsAnErrorOfCreate(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	bomb := image(t, n, "bomb", node.Regular("app.wasm", compileBomb()))
	t.Run("and the client may give up before", func(t *testing.T) {
		b := container(t, n, bomb, args("/app.wasm"))
		ctx, cancel := context.WithCancel(b.ctx)
		defer cancel()
		b.ctx = ctx
		failed := make(chan error, 1)
		go func() { failed <- b.create() }()
		eventually(t, "it is being compiled", func() bool {
			return slices.ContainsFunc(traces(t, n), func(s string) bool { return strings.HasSuffix(s, " compile ") })
		})
		cancel()
		wantError(t, <-failed, context.Canceled)
		b.remove()
		leaves(t, n, before)
	})
	b := container(t, n, bomb, args("/app.wasm"))
	wantError(t, b.create(), errdefs.ErrInvalidArgument, "/app.wasm", "compiling it needed more than", "of memory")
	b.remove()
	leaves(t, n, before)
}
