package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func lines(events ...string) string { return strings.Join(events, "\n") + "\n" }

// result is the end of a test, as go test reports it.
func result(name, action string) string {
	return `{"Action":"run","Package":"p","Test":"` + name + `"}` + "\n" + `{"Action":"` + action + `","Package":"p","Test":"` + name + `"}`
}

func TestAPointNeedsAPassingTestAndNoOther(t *testing.T) {
	for name, c := range map[string]struct {
		runs []string
		want []string
	}{
		"nothing":                 {[]string{lines(result("TestX", "pass"))}, []string{"01", "02"}},
		"both pass":               {[]string{lines(result("TestContract01X", "pass"), result("TestContract02X", "pass"))}, nil},
		"a name with two":         {[]string{lines(result("TestContract01And02X", "pass"))}, nil},
		"a subtest":               {[]string{lines(result("TestX/Contract01", "pass"), result("TestX/Contract02_y", "pass"))}, nil},
		"a skip":                  {[]string{lines(result("TestContract01And02X", "skip"))}, []string{"01  TestContract01And02X: skip", "02  TestContract01And02X: skip"}},
		"a failure":               {[]string{lines(result("TestContract01X", "pass"), result("TestContract02X", "fail"))}, []string{"02  TestContract02X: fail"}},
		"a skip beside a pass":    {[]string{lines(result("TestContract01X", "pass"), result("TestContract01And02Y", "skip"), result("TestContract02X", "pass"))}, []string{"01  TestContract01And02Y: skip", "02  TestContract01And02Y: skip"}},
		"a skip of a subtest":     {[]string{lines(result("TestContract01And02X", "pass"), result("TestContract01And02X/y", "skip"))}, []string{"01  TestContract01And02X/y: skip", "02  TestContract01And02X/y: skip"}},
		"skipped here, run there": {[]string{lines(result("TestContract01And02X", "skip")), lines(result("TestContract01And02X", "pass"))}, nil},
		"run here, skipped there": {[]string{lines(result("TestContract01And02X", "pass")), lines(result("TestContract01And02X", "skip"))}, nil},
		"passes here, not there":  {[]string{lines(result("TestContract01And02X", "pass"), result("TestContract01And02X", "fail"))}, []string{"01  TestContract01And02X: fail", "02  TestContract01And02X: fail"}},
		"fails here, passes there": {[]string{lines(result("TestContract01And02X", "fail")), lines(result("TestContract01And02X", "pass"))},
			[]string{"01  TestContract01And02X: fail", "02  TestContract01And02X: fail"}},
		"never ended": {[]string{lines(result("TestContract01X", "pass"), `{"Action":"run","Package":"p","Test":"TestContract02X"}`)}, []string{"02  TestContract02X: fail"}},
	} {
		t.Run(name, func(t *testing.T) {
			results := map[test]string{}
			for _, run := range c.runs {
				if err := read(strings.NewReader(run), results); err != nil {
					t.Fatal(err)
				}
			}
			if got := unproven(2, results); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestADocumentNamesPassingTestsOnly(t *testing.T) {
	results := map[test]string{{"p", "TestA"}: "pass", {"p", "TestB"}: "skip", {"q", "TestC"}: "fail", {"q", "FuzzD"}: "pass"}
	for doc, want := range map[string][]string{
		"`TestA` and `FuzzD`, TestX, `Tests`":     nil,
		"`TestA`\n`TestB`":                        {"TestB: skip"},
		"`TestB` in `make test-cgroup2`":          nil,
		"`TestC` in `make test-cgroup2`":          {"TestC: fail"},
		"`TestE` in `make test-cgroup2`\n`TestA`": {"TestE: there is none"},
	} {
		if got := promised(doc, results); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", doc, got, want)
		}
	}
}

func TestARunIsShownAsGoTestDoes(t *testing.T) {
	out := func(test, text string) string {
		return `{"Action":"output","Package":"p","Test":"` + test + `","Output":"` + text + `\n"}`
	}
	for name, c := range map[string]struct {
		in, want string
	}{
		"passes":       {lines(result("TestA", "pass"), out("TestA", "quiet"), out("", "PASS"), out("", `ok  \tp\t1s`), `{"Action":"pass","Package":"p"}`), "ok  \tp\t1s\n"},
		"fails":        {lines(out("TestA", "=== RUN TestA"), out("TestA", "a_test.go:1: why"), out("TestA", "--- FAIL: TestA"), result("TestA", "fail"), out("", "FAIL"), `{"Action":"fail","Package":"p"}`), "a_test.go:1: why\n--- FAIL: TestA\nFAIL\n"},
		"ends early":   {lines(`{"Action":"run","Package":"p","Test":"TestA"}`, out("TestA", "panic: no"), `{"Action":"fail","Package":"p"}`), "panic: no\n"},
		"is not built": {lines(`{"ImportPath":"p","Action":"build-output","Output":"a.go:1: no\n"}`, `{"ImportPath":"p","Action":"build-fail"}`), "a.go:1: no\n"},
		"is no run":    {"go: no such thing\n", "go: no such thing\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var w bytes.Buffer
			if err := show(strings.NewReader(c.in), &w); err != nil || w.String() != c.want {
				t.Errorf("got %q, %v, want %q", &w, err, c.want)
			}
		})
	}
}

func TestACommandThatFailsIsKeptAndFails(t *testing.T) {
	for status, bad := range map[string]bool{"0": false, "1": true} {
		keep := filepath.Join(t.TempDir(), "kept", "run.json")
		if err := run([]string{"sh", "-c", `echo '{"Action":"start"}'; exit ` + status}, keep); (err != nil) != bad {
			t.Errorf("status %s: %v", status, err)
		}
		if kept, err := os.ReadFile(keep); err != nil || string(kept) != "{\"Action\":\"start\"}\n" {
			t.Errorf("kept %q, %v", kept, err)
		}
	}
}
