package telemetry

import (
	"bytes"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const docs = "../../docs/telemetry.md"

// A name is a constant of semconv.go. Its kind is "Attribute" for one that is, which is
// what the page calls the table, "Value" for what an attribute may be. The others have
// no type to tell them apart.
type name struct{ ident, kind, value, doc string }

// namesInSource are the exported constants of semconv.go. What other packages' are worth
// the compiler knows.
func namesInSource(t *testing.T) (names []name) {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", ".")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[path] = file
	}
	fset := token.NewFileSet()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var parsed []*ast.File
	var source *ast.File
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
		if name == "semconv.go" {
			source = f
		}
	}
	info := &types.Info{Defs: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
	if _, err := config.Check("telemetry", fset, parsed, info); err != nil {
		t.Fatal(err)
	}
	for _, decl := range source.Decls {
		block, ok := decl.(*ast.GenDecl)
		if !ok || block.Tok != token.CONST {
			continue
		}
		for _, spec := range block.Specs {
			spec := spec.(*ast.ValueSpec)
			for _, ident := range spec.Names {
				c, ok := info.Defs[ident].(*types.Const)
				if !ok || !ident.IsExported() || c.Val().Kind() != constant.String {
					continue
				}
				kind := ""
				switch {
				case c.Type().String() == "go.opentelemetry.io/otel/attribute.Key":
					kind = "Attribute"
				case strings.HasPrefix(block.Doc.Text(), "Values of "):
					kind = "Value"
				}
				names = append(names, name{ident.Name, kind, constant.StringVal(c.Val()), spec.Doc.Text()})
			}
		}
	}
	return names
}

// namesInDocs are those in the first columns of the page's tables of names, by the
// title of the column.
func namesInDocs(page []byte) map[string][]string {
	named := regexp.MustCompile("^`([^`]+)`$")
	found := map[string][]string{}
	title := ""
	for line := range bytes.Lines(page) {
		cells := strings.Split(string(bytes.TrimSpace(line)), "|")
		if len(cells) < 3 {
			title = ""
			continue
		}
		first := strings.TrimSpace(cells[1])
		if title == "" {
			title = first
		}
		if m := named.FindStringSubmatch(first); m != nil && slices.Contains([]string{"Span", "Event", "Attribute", "Metric", "Field"}, title) {
			found[title] = append(found[title], m[1])
		}
	}
	return found
}

func TestEveryNameIsInTheDocumentation(t *testing.T) {
	page, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	documented := namesInDocs(page)
	for title, rows := range documented {
		for i, row := range rows {
			if slices.Contains(rows[:i], row) {
				t.Errorf("%s: the table of each %s has %s twice", docs, strings.ToLower(title), row)
			}
		}
	}
	used := map[string]bool{}
	for _, n := range namesInSource(t) {
		if n.kind == "Value" {
			if !bytes.Contains(page, []byte("`"+n.value+"`")) {
				t.Errorf("%s: the value %s, %s, is not there", docs, n.value, n.ident)
			}
			continue
		}
		if n.doc == "" {
			t.Errorf("%s has no comment", n.ident)
		}
		kinds := []string{"Span", "Event", "Metric", "Field"}
		if n.kind != "" {
			kinds = []string{n.kind}
		}
		found := slices.DeleteFunc(kinds, func(kind string) bool { return !slices.Contains(documented[kind], n.value) })
		if len(found) == 0 {
			t.Errorf("%s: no table has a row for %s, %s", docs, n.value, n.ident)
		}
		for _, kind := range found {
			used[kind+n.value] = true
		}
	}
	for kind, rows := range documented {
		for _, row := range rows {
			if !used[kind+row] {
				t.Errorf("%s: %s is the name of no %s in semconv.go", docs, row, strings.ToLower(kind))
			}
		}
	}
}
