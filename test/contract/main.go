// Command contract runs `go test -json` and prints what go test would have
// printed without: of what passed a line for each package, of what failed
// everything. Of the runs it has kept it says whether they prove the contract.
//
//	contract [-o FILE] go test -json ...        fails when that does
//	contract -points 37 [-doc DOC] FILE...      fails when a point has no passing test
//
// With -doc each test that the document names must have passed as well, but for
// those on a line that says where else they are run: by `make test-...`.
//
// A test proves the points of the contract that its name has: TestContract05…,
// TestContract03And04…, or such a subtest. A point is proven when a test of it has
// passed and each of them has, in one of the runs at least: a skip proves nothing.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// An event is a line of `go test -json`: see go doc test2json.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// A test is named by its package and itself.
type test struct{ pkg, name string }

func main() {
	points := flag.Int("points", 0, "check that the contract's points 1 to this one are proven by the runs in the files")
	doc := flag.String("doc", "", "check that the tests which this document names have passed")
	keep := flag.String("o", "", "keep the run in this file")
	flag.Parse()
	err := errors.New("want a command, or -points and files")
	switch {
	case flag.NArg() == 0:
	case *points > 0:
		err = check(*points, *doc, flag.Args())
	default:
		err = run(flag.Args(), *keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "contract:", err)
		os.Exit(1)
	}
}

// run shows what a command writes while it runs, and keeps it in a file.
func run(command []string, keep string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	r := io.Reader(out)
	if keep != "" {
		if err := os.MkdirAll(filepath.Dir(keep), 0o755); err != nil {
			return err
		}
		f, err := os.Create(keep)
		if err != nil {
			return err
		}
		defer f.Close()
		r = io.TeeReader(r, f)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = show(r, os.Stdout)
	return errors.Join(err, cmd.Wait())
}

// show prints a run.
func show(r io.Reader, w io.Writer) error {
	output := map[test]string{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		var e event
		if json.Unmarshal(line, &e) != nil || e.Action == "" {
			fmt.Fprintf(w, "%s", line) // not the test's, go's own
			continue
		}
		t := test{e.Package, e.Test}
		switch e.Action {
		case "output", "build-output":
			if e.Test != "" {
				output[t] += e.Output
			} else if e.Output != "PASS\n" {
				fmt.Fprint(w, e.Output)
			}
		case "fail", "build-fail":
			if e.Test == "" { // what was running when the package ended
				for u, out := range output {
					if u.pkg == e.Package {
						printTest(w, out)
					}
				}
			}
			printTest(w, output[t])
			delete(output, t)
		case "pass", "skip":
			delete(output, t)
		}
	}
}

// printTest leaves out what only says that a test is going on.
func printTest(w io.Writer, output string) {
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(w, line)
		}
	}
}

// check says which points of the contract the runs in files do not prove, and what
// the document promises without a test.
func check(points int, doc string, files []string) error {
	results := map[test]string{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = read(f, results)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if missing := unproven(points, results); len(missing) > 0 {
		return fmt.Errorf("points of the contract without a passing test:\n  %s", strings.Join(missing, "\n  "))
	}
	if doc != "" {
		text, err := os.ReadFile(doc)
		if err != nil {
			return err
		}
		if missing := promised(string(text), results); len(missing) > 0 {
			return fmt.Errorf("%s: without a passing test:\n  %s", doc, strings.Join(missing, "\n  "))
		}
	}
	fmt.Printf("contract: each of %d points has a passing test\n", points)
	return nil
}

// read adds the results of a run. One that failed anywhere has failed; one that
// passed anywhere need not pass where it was skipped.
func read(r io.Reader, results map[test]string) error {
	d := json.NewDecoder(r)
	running := map[test]bool{}
	for {
		var e event
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		t := test{e.Package, e.Test}
		switch {
		case e.Test == "":
		case e.Action == "run":
			running[t] = true
		case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
			delete(running, t)
			if old := results[t]; old == "" || old == "skip" || e.Action == "fail" {
				results[t] = e.Action
			}
		}
	}
	for t := range running {
		results[t] = "fail" // never ended
	}
	return nil
}

var named = regexp.MustCompile(`Contract(\d\d(?:And\d\d)*)`)

// unproven are the points without a passing test, or with one that does not pass.
func unproven(points int, results map[test]string) (missing []string) {
	proof, against := map[int]bool{}, map[int][]string{}
	for t, result := range results {
		for _, m := range named.FindAllStringSubmatch(t.name, -1) {
			for _, s := range strings.Split(m[1], "And") {
				n, _ := strconv.Atoi(s) // two digits
				if result == "pass" {
					proof[n] = true
				} else {
					against[n] = append(against[n], t.name+": "+result)
				}
			}
		}
	}
	for n := 1; n <= points; n++ {
		switch {
		case len(against[n]) > 0:
			slices.Sort(against[n])
			missing = append(missing, fmt.Sprintf("%02d  %s", n, strings.Join(against[n], ", ")))
		case !proof[n]:
			missing = append(missing, fmt.Sprintf("%02d", n))
		}
	}
	return missing
}

var inDoc = regexp.MustCompile("`((?:Test|Fuzz)[A-Z0-9]\\w*)`")

// promised are the tests that a document names and that have not passed.
func promised(doc string, results map[test]string) (missing []string) {
	byName := map[string]string{}
	for t, result := range results {
		byName[t.name] = result
	}
	for line := range strings.Lines(doc) {
		elsewhere := strings.Contains(line, "`make test-")
		for _, m := range inDoc.FindAllStringSubmatch(line, -1) {
			switch result := byName[m[1]]; {
			case result == "":
				missing = append(missing, m[1]+": there is none")
			case result != "pass" && !(result == "skip" && elsewhere):
				missing = append(missing, m[1]+": "+result)
			}
		}
	}
	return missing
}
