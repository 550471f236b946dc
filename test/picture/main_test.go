package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestThePictureInDocsIsThatOfTheTraceInDocs(t *testing.T) {
	docs := filepath.Join("..", "..", "docs")
	want, err := os.ReadFile(filepath.Join(docs, "trace.svg"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := draw(filepath.Join(docs, "trace.json"), title)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/trace.svg is not what is drawn of docs/trace.json: run `make picture`")
	}
}

func TestWhatJaegersInterfaceSavesIsReadAsWell(t *testing.T) {
	const trace = `{"traceID":"1","spans":[{"traceID":"1","spanID":"2","operationName":"module.run","references":[],"startTime":10,"duration":20,"tags":[{"key":"error","type":"bool","value":true}],"processID":"p1"}],"processes":{"p1":{"serviceName":"shim","tags":[]}}}`
	dir := t.TempDir()
	var pictures [][]byte
	for name, data := range map[string]string{"one.json": trace, "saved.json": `{"data":[` + trace + `],"total":0}`} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		svg, err := draw(file, "x")
		if err != nil {
			t.Fatal(err)
		}
		pictures = append(pictures, svg)
	}
	if !bytes.Equal(pictures[0], pictures[1]) || !bytes.Contains(pictures[0], []byte("module.run (shim), 20 µs")) {
		t.Errorf("got\n%s\nand\n%s", pictures[0], pictures[1])
	}
	for name, data := range map[string]string{"empty.json": "", "none.json": `{"spans":[]}`} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if svg, err := draw(file, "x"); err == nil {
			t.Errorf("%s: drew %s", name, svg)
		}
	}
}
