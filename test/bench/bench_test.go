package main

import (
	"bytes"
	"errors"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

// The collector is a process of its own: this program, started again.
func TestMain(m *testing.M) {
	if slices.Equal(os.Args[1:], []string{"-collect"}) {
		if err := serve(); err != nil {
			log.Fatal("collector: ", err)
		}
		return
	}
	os.Exit(m.Run())
}

func TestAQuantileIsBetweenTheTwoNearestValues(t *testing.T) {
	for _, tt := range []struct {
		values  []float64
		q, want float64
	}{
		{nil, 0.5, 0}, {[]float64{7}, 0.95, 7}, {[]float64{3, 1, 2}, 0.5, 2}, {[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, 0, 1}, {[]float64{1, 2, 3, 4, 5}, 1, 5}, {[]float64{0, 10}, 0.95, 9.5},
	} {
		if got := quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("the %v-quantile of %v is %v, want %v", tt.q, tt.values, got, tt.want)
		}
	}
	if got := quantile([]time.Duration{4, 2}, 0.5); got != 3 {
		t.Errorf("the median of durations is %v, want 3", got)
	}
}

func TestWhatARoundHasInCommonIsNoNoiseOfARatio(t *testing.T) {
	var a, b, alone []float64
	for i := range 50 {
		drift := float64(1 + i%10) // far more than they differ
		a, b, alone = append(a, drift), append(b, 2*drift), append(alone, 2*float64(1+(i*7)%10))
	}
	paired := ratio(a, b, mean)
	if paired.Value != 0.5 || paired.Low != 0.5 || paired.High != 0.5 {
		t.Errorf("of rounds in which one always takes half: %+v, want 0.5 and no spread", paired)
	}
	other := ratio(a, alone[:len(alone)-1], mean)
	if other.Low >= other.Value || other.High <= other.Value || other.Low < 0.3 || other.High > 0.8 {
		t.Errorf("of samples that have nothing in common: %+v, want a spread around 0.5", other)
	}
	if again := ratio(a, alone[:len(alone)-1], mean); again != other {
		t.Errorf("the same samples once more: %+v, want %+v", again, other)
	}
	if got := of(a, median); got.Low > got.Value || got.High < got.Value || got.Low == got.High {
		t.Errorf("the median of %v: %+v, which has no spread", a, got)
	}
}

func TestWhatTheKernelSaysOfAProcessIsRead(t *testing.T) {
	const rollup = "55f0c0000000-7ffc00000000 ---p 00000000 00:00 0                          [rollup]\n" +
		"Rss:                1036 kB\nPss:                 215 kB\nPss_Dirty:            96 kB\nPss_Anon:             96 kB\n" +
		"Shared_Clean:        900 kB\nPrivate_Clean:        40 kB\nPrivate_Dirty:        96 kB\nLocked:                0 kB\n"
	if pss, private, err := memoryOf([]byte(rollup)); err != nil || pss != 215 || private != 136 {
		t.Errorf("memory: %v proportional, %v private, %v, want 215 and 136", pss, private, err)
	}
	for _, broken := range []string{"", "Pss_Dirty:            96 kB\n", "Pss:                 many kB\n"} {
		if pss, _, err := memoryOf([]byte(broken)); err == nil {
			t.Errorf("memory of %q is %v, want an error", broken, pss)
		}
	}
	if parent, zombie, err := parentOf([]byte("12 (a) S 7 (b) S 34 12 12 0 -1")); err != nil || parent != 34 || zombie {
		t.Errorf("parent %d, zombie %v, %v, want 34", parent, zombie, err)
	}
	if parent, zombie, err := parentOf([]byte("12 (sh) Z 1 12 12 0 -1")); err != nil || parent != 1 || !zombie {
		t.Errorf("parent %d, zombie %v, %v, want a zombie of 1", parent, zombie, err)
	}
	for _, broken := range []string{"", "12 (sh) ", "12 (sh) S x"} {
		if parent, _, err := parentOf([]byte(broken)); err == nil {
			t.Errorf("the parent in %q is %d, want an error", broken, parent)
		}
	}
	if n, err := switchesOf([]byte("Name:\tx\nvoluntary_ctxt_switches:\t42\nnonvoluntary_ctxt_switches:\t7\n")); err != nil || n != 42 {
		t.Errorf("%d switches, %v, want 42", n, err)
	}
	if n, err := switchesOf([]byte("nonvoluntary_ctxt_switches:\t7\n")); err == nil {
		t.Errorf("%d switches where there are none, want an error", n)
	}
}

func TestWhatOthersUseIsWithoutWaiting(t *testing.T) {
	used, all, err := usedOf([]byte("cpu  10 1 5 80 20 2 3 4 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	if err != nil || used != 25 || all != 125 {
		t.Errorf("used %v of %v, %v, want 25 of 125", used, all, err)
	}
	for _, broken := range []string{"", "cpu 1 2 3\n", "cpu0 10 1 5 80 20 2 3 4\n", "cpu 10 1 5 80 20 2 3 x\n"} {
		if used, _, err := usedOf([]byte(broken)); err == nil {
			t.Errorf("used in %q: %v, want an error", broken, used)
		}
	}
}

func TestProcessorTimeIsThatOfAllThreads(t *testing.T) {
	used := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	c, err := costOf(os.Getpid())
	after := used()
	if err != nil {
		t.Fatal(err)
	}
	// rusage has whole microseconds.
	if c.cpu < before-time.Microsecond || c.cpu > after+time.Microsecond {
		t.Errorf("processor time %v, want between %v and %v", c.cpu, before, after)
	}
	if c.threads < 2 || c.descriptors < 3 || c.pss <= 0 || c.private <= 0 || c.pss < c.private {
		t.Errorf("a Go program has %+v", c)
	}
	if _, err := costOf(1 << 30); err == nil {
		t.Error("a process that there is not costs something")
	}
}

// copied is a program under another name, which nobody else runs.
func copied(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAFamilyIsAProgramAndAllItsChildren(t *testing.T) {
	shell, sleep := copied(t, "sh"), copied(t, "sleep")
	var pids [2]int
	for i := range pids {
		cmd := exec.Command(shell, "-c", sleep+" 60 & echo; wait")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pids[i] = cmd.Process.Pid
		t.Cleanup(func() {
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			_ = cmd.Wait() // of what was killed
		})
		if _, err := stdout.Read(make([]byte, 1)); err != nil { // it has started its child
			t.Fatal(err)
		}
	}
	slices.Sort(pids[:])
	for _, programs := range [][]string{{shell}, {shell, sleep}} {
		found, err := families(programs...)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 2 || len(found[0]) != 2 || len(found[1]) != 2 || found[0][0] != pids[0] || found[1][0] != pids[1] {
			t.Errorf("families of %v: %v, want those of %v with a child each", programs, found, pids)
		}
	}
	if found, err := families(sleep); err != nil || len(found) != 2 || len(found[0]) != 1 {
		t.Errorf("families of the children alone: %v, %v, want two of one", found, err)
	}
	if found, err := families(copied(t, "sleep")); err != nil || len(found) != 0 {
		t.Errorf("families of a program that nobody runs: %v, %v", found, err)
	}
	if _, err := families("/there/is/none"); err == nil {
		t.Error("a program that there is not has no error")
	}
}

func TestEverythingIsDoneOnceOrUntilOneFails(t *testing.T) {
	done := make([]int, 100)
	if err := inParallel(len(done), func(i int) error { done[i]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(done, func(n int) bool { return n != 1 }); i >= 0 {
		t.Errorf("%d was done %d times", i, done[i])
	}
	broken := errors.New("broken")
	var begun atomic.Int64
	if err := inParallel(1000, func(int) error { begun.Add(1); return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if n := begun.Load(); n > parallel {
		t.Errorf("%d were begun though each fails, of %d at a time", n, parallel)
	}
}

func TestASymbolIsOfAModule(t *testing.T) {
	modules := []string{"example.com/main", "github.com/a/b", "github.com/a/b/v2", "gopkg.in/yaml.v3"}
	for symbol, want := range map[string]string{
		"main.main":                           "example.com/main",
		"example.com/main/internal/x.F":       "example.com/main",
		"github.com/a/b/c.(*T).M":             "github.com/a/b",
		"github.com/a/b/v2.init":              "github.com/a/b/v2",
		"github.com/a/b/v2/x.F[go.shape.int]": "github.com/a/b/v2",
		"slices.Sort[github.com/a/b.T]":       library,
		"gopkg.in/yaml%2ev3.Unmarshal":        "gopkg.in/yaml.v3",
		"net/http.(*Server).Serve":            library,
		"runtime.mallocgc":                    library,
		"vendor/golang.org/x/net/dns.F":       library,
		"memeqbody":                           library,
		"go:itab.*os.File,io.Reader":          "",
		"type:.eq.github.com/a/b.T":           "",
	} {
		if got := moduleOf(symbol, modules); got != want {
			t.Errorf("%s is of %q, want %q", symbol, got, want)
		}
	}
}

// made are results of a run that never was.
func made() *results {
	r := &results{Machine: machine{{"processor", "one"}}}
	for _, who := range []string{runcC, tiny} {
		for i := range 9 {
			v := float64(10 + i)
			if who == tiny {
				v *= 0.4
			}
			r.add(sample{"start", who, 0, total, "ms", []float64{v}})
		}
	}
	r.add(sample{"rate", runcC, 4, "rate", "1/s", []float64{10}})
	r.add(sample{"rate", tiny, 4, "rate", "1/s", []float64{21}})
	r.add(sample{"idle", runcC, 100, cpu, "ms", []float64{0}})
	r.add(sample{"idle", wasmC, 100, cpu, "ms", []float64{0}})
	for i := range 4 {
		for _, s := range []spanSample{
			{Path: "client all", Begin: []float64{0}, Took: []float64{20}},
			{Path: "client all\ncontainerd a.b.Tasks/Create", Begin: []float64{5}, Took: []float64{10 + float64(i)}},
			{Path: "client all\ncontainerd a.b.Tasks/Quick", Begin: []float64{16}, Took: []float64{0.01}},
			{Path: "client all\nshim now.and.then", Begin: []float64{17}, Took: []float64{1}},
		} {
			s.Who, s.Traces = tiny, 4
			s.Service, _, _ = strings.Cut(s.Path[strings.LastIndexByte(s.Path, '\n')+1:], " ")
			if strings.HasSuffix(s.Path, "then") && i > 0 {
				continue
			}
			have := slices.IndexFunc(r.spans, func(h *spanSample) bool { return h.Path == s.Path })
			if have < 0 {
				r.spans = append(r.spans, &s)
				continue
			}
			r.spans[have].Begin, r.spans[have].Took = append(r.spans[have].Begin, s.Begin...), append(r.spans[have].Took, s.Took...)
		}
	}
	return r
}

func TestATargetIsMetOnItsOwnSide(t *testing.T) {
	got := map[string]outcome{}
	for _, o := range outcomes(made()) {
		got[o.Name] = o
	}
	if o, ok := got["create to delete, tiny module, p50"]; !ok || !o.Met || o.Value < 0.39 || o.Value > 0.41 {
		t.Errorf("at most 0.42 of 0.4: %+v", o)
	}
	if o, ok := got["tasks per second, 4 in parallel"]; !ok || o.Met || o.Value != 2.1 || !strings.Contains(o.verdict(), "no") {
		t.Errorf("at least 2.2 of 2.1: %+v", o)
	}
	if len(got) != 2 {
		t.Errorf("there are outcomes of what was not measured, or was nothing over nothing: %v", got)
	}
	if v := (outcome{Target: 1, Met: true, estimate: estimate{0.99, 0.9, 1.1}}).verdict(); v != "yes, within the noise" {
		t.Errorf("a target between the bounds is met: %q", v)
	}
}

func TestAWaterfallIsOfMediansWithWhatIsBetween(t *testing.T) {
	spans, traces := medians(made().spans, tiny)
	if traces != 4 || len(spans) != 2 || spans[1].Name != "Tasks/Create" || spans[1].Parent != spans[0].ID || spans[1].End.Sub(spans[1].Start) != 11500*time.Microsecond {
		t.Fatalf("the medians of %d traces are %+v", traces, spans)
	}
	gaps := itself(spans)
	if len(gaps) != 2 || gaps[0].End.Sub(gaps[0].Start) != 5*time.Millisecond || gaps[1].End.Sub(gaps[1].Start) != 3500*time.Microsecond {
		t.Errorf("between them are %+v, want 5 ms before and 3.5 ms after", gaps)
	}
	if table := waterfallTable(made()); !strings.Contains(table, "├─ (itself)") || !strings.Contains(table, "├─ Tasks/Create") {
		t.Errorf("drawn:\n%s", table)
	}
	// Of a span within another's time nothing is between.
	at := func(ms int) time.Time { return time.Unix(0, int64(ms)*1e6) }
	if gaps := itself([]collector.Span{{ID: "1", Start: at(0), End: at(9)}, {ID: "2", Parent: "1", Start: at(0), End: at(9)}, {ID: "3", Parent: "1", Start: at(2), End: at(4)}}); len(gaps) != 0 {
		t.Errorf("between spans that overlap are %+v", gaps)
	}
}

func TestOutputFilesAreReadAsTheyWereWritten(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	r := made()
	if err := r.save(first); err != nil {
		t.Fatal(err)
	}
	later := &results{Machine: machine{{"processor", "another"}}}
	later.add(sample{"start", runcC, 0, total, "ms", []float64{1}})
	if err := later.save(second); err != nil {
		t.Fatal(err)
	}
	got, err := load(first, second)
	if err != nil {
		t.Fatal(err)
	}
	if v := got.of("start", runcC, 0, total); !slices.Equal(v, []float64{1}) || len(got.of("start", tiny, 0, total)) != 0 {
		t.Errorf("of a section that two files have the samples are %v, want the second's only", v)
	}
	if v := got.of("rate", tiny, 4, "rate"); !slices.Equal(v, []float64{21}) || len(got.spans) != len(r.spans) || got.Machine[0].Value != "one; another" {
		t.Errorf("what only the first has is gone: %v, %d spans, %v", v, len(got.spans), got.Machine)
	}
	for name, text := range map[string]string{"empty": "", "no JSON": "x", "another": `{"flags":1}`, "cut": `{"machine":[{"Name":"a","Value":"b"}]}` + "\n" + `{"sample":{"sec`} {
		if err := os.WriteFile(first, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := load(first); err == nil || !strings.HasPrefix(err.Error(), first) {
			t.Errorf("%s: got %v, want an error that names the file", name, err)
		}
	}
}

func TestADocumentHasWhatARunHas(t *testing.T) {
	const document = "a\n<!-- bench: rate: begin (make performance) -->\nold\n<!-- bench: rate: end -->\nb\n" +
		"<!-- bench: scale: begin (make performance) -->\nkept\n<!-- bench: scale: end -->\nc\n"
	got, err := fill(document, made())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(got, "old") || !strings.Contains(got, "**2.10**") || !strings.Contains(got, "begin (make performance) -->\nkept\n<!--") || !strings.HasSuffix(got, "c\n") {
		t.Errorf("filled:\n%s", got)
	}
	if again, err := fill(got, made()); err != nil || again != got {
		t.Errorf("filled again: %v\n%s", err, again)
	}
	for _, broken := range []string{
		"<!-- bench: rate: begin (make performance) -->\n", "<!-- bench: rate: end -->\n", "<!-- bench: nonsense: begin (make performance) -->\n<!-- bench: nonsense: end -->\n",
		"<!-- bench: rate: begin (make performance) -->\n<!-- bench: pod: end -->\n",
	} {
		if got, err := fill(broken, made()); err == nil {
			t.Errorf("%q was filled: %q", broken, got)
		}
	}
}

// A run of nothing changes no document, and every part of theirs is known.
func TestTheDocumentationCanBeWritten(t *testing.T) {
	have := map[string]bool{}
	for _, name := range []string{"../../docs/performance.md", "../../README.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fill(string(text), &results{}); err != nil || got != string(text) {
			t.Errorf("%s: %v, or it was changed", name, err)
		}
		for _, s := range sections {
			if strings.Contains(string(text), "<!-- bench: "+s.name+": begin") {
				have[s.name] = true
			}
		}
	}
	for _, s := range sections {
		if !have[s.name] {
			t.Errorf("no document has the section %q", s.name)
		}
	}
}

// need skips or fails a test that cannot be run here, as those in test/ do.
func need(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	} else if _, err := os.Stat("../../bin/containerd"); err != nil {
		why = "needs what `make test` builds"
	}
	if why == "" {
		return
	}
	if os.Getenv("TEST_ROOT") != "" || os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why + ": run `sudo make test`")
}

var ofTwo = settings{
	warm: 1, rounds: 2, tasks: 4, blocks: 1, containers: 2, pods: 1, nodeCounts: []int{1, 2}, podCounts: []int{1, 2, 3},
	settle: 100 * time.Millisecond, idle: time.Second, traced: 2, telemetry: 2,
}

// The whole benchmark, of two where it is of a hundred: so that it measures what it
// says when somebody wants to know. Two sections need builds that it alone has, and
// one has a test of its own, for what guests do.
func TestABenchmarkOfTwo(t *testing.T) {
	need(t)
	chosen := slices.DeleteFunc(slices.Clone(sections), func(s section) bool { return slices.Contains([]string{"walls", "size", "work"}, s.name) })
	var ran []string
	r, err := run(t.Context(), ofTwo, "../../bin", "../../bin/guests", chosen, func(s section, r *results, took time.Duration) {
		t.Logf("%s: %v", s.name, took)
		if table := s.table(r); strings.Count(table, "\n") < 6 || strings.Contains(table, "NaN") || strings.Contains(table, "Inf") {
			t.Errorf("the table of %s:\n%s", s.name, table)
		}
		ran = append(ran, s.name)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(ran) != len(chosen) {
		t.Errorf("only %q have been run", ran)
	}
	var lack []string
	for _, target := range targets {
		// Two idle containers may take no time at all in a second.
		if _, ok := target.measure(r); !ok && !strings.Contains(target.name, "idle") {
			lack = append(lack, target.name)
		}
	}
	if len(lack) > 0 {
		t.Errorf("the run has nothing of the targets %q", lack)
	}
	for _, check := range []struct {
		section, who string
		count, want  int
		what         string
	}{
		{"start", wasmGo, 0, 2, total}, {"pod", runcC, 0, 2, "create"}, {"memory", wasmC, 2, 2, pss}, {"idle", wasmC, 2, 2, cpu}, {"scale", runcC, 2, 2, threads},
		{"scale", tiny + again, 1, 1, total}, {"rate", tiny, 4, 1, "rate"}, {"telemetry", "one that hangs", 0, 2, "delete"},
	} {
		if got := r.of(check.section, check.who, check.count, check.what); len(got) != check.want || slices.Contains(got, 0) && check.what != cpu {
			t.Errorf("%s of %s beside %d in %s: %v, want %d values", check.what, check.who, check.count, check.section, got, check.want)
		}
	}
	var out bytes.Buffer
	if err := r.write(&out); err != nil {
		t.Fatal(err)
	}
}

// What fails in a run is the run's error, not a fast container.
func TestAContainerThatFailsIsTheBenchmarksError(t *testing.T) {
	need(t)
	guests := t.TempDir()
	for name, file := range map[string]string{"hello-static": "hello-static", "hello.wasm": "trap.wasm", "hello-c.wasm": "hello-c.wasm", "hello-go.wasm": "hello.wasm"} {
		data, err := os.ReadFile(filepath.Join("../../bin/guests", file))
		if err == nil {
			err = os.WriteFile(filepath.Join(guests, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	log.SetOutput(io.Discard) // the node's log
	defer log.SetOutput(os.Stderr)
	chosen, err := choose("start")
	if err != nil {
		t.Fatal(err)
	}
	_, err = run(t.Context(), ofTwo, "../../bin", guests, chosen, nil)
	if err == nil || !strings.Contains(err.Error(), tiny+": exit status 134") {
		t.Errorf("got %v, want that %s has exited with 134", err, tiny)
	}
	if err != nil && strings.Contains(err.Error(), "not empty") {
		t.Errorf("something was left behind: %v", err)
	}
	if _, err := choose("start,nonsense"); err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("a section that there is not: %v", err)
	}
}
