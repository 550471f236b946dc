package main

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// symbolShim is the shim with its symbols, else as it is shipped.
var symbolShim = filepath.Join("symbols", wazeroShim)

// What of the binary is no module's.
const (
	binary  = "the binary"
	unnamed = "types, strings and headers, which have no symbols"
	library = "Go's runtime and standard library"
)

// size is what each module has in the shim. Code and data are those of its symbols;
// the tables that the runtime has for all code, for traces of the stack and the
// garbage collector, are shared out as the code is.
func size(_ context.Context, b *bench) error {
	name := filepath.Join(b.from, symbolShim)
	info, err := buildinfo.ReadFile(name)
	if err != nil {
		return err
	}
	modules := []string{info.Main.Path}
	for _, d := range info.Deps {
		modules = append(modules, d.Path)
	}
	f, err := elf.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var code, tables float64
	codes, all := map[string]float64{}, map[string]float64{}
	for _, s := range symbols {
		if int(s.Section) >= len(f.Sections) || s.Section == elf.SHN_UNDEF {
			continue
		}
		section := f.Sections[s.Section]
		if section.Type == elf.SHT_NOBITS || section.Flags&elf.SHF_ALLOC == 0 || section.Name == ".gopclntab" {
			continue // not in the file, or not when it is stripped
		}
		module := moduleOf(s.Name, modules)
		if module == "" {
			continue
		}
		if section.Name == ".text" {
			codes[module] += float64(s.Size)
			code += float64(s.Size)
		}
		all[module] += float64(s.Size)
	}
	if s := f.Section(".gopclntab"); s != nil {
		tables = float64(s.FileSize)
	}
	shipped, err := os.Stat(filepath.Join(b.bin, wazeroShim))
	if err != nil {
		return err
	}
	rest := float64(shipped.Size())
	for module := range all {
		all[module] += tables * codes[module] / code
		rest -= all[module]
	}
	if rest < 0 {
		return fmt.Errorf("%s has more than %s: they are not of one build", symbolShim, wazeroShim)
	}
	// Where the shim has a program inside that it executes, which is data without a name.
	if inside, err := os.Stat(filepath.Join("internal/shim/program", "instance_"+runtime.GOARCH+".gz")); err == nil {
		all["the program of instance processes, compressed"] = float64(inside.Size())
		rest -= float64(inside.Size())
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all[unnamed] = rest
	for _, module := range slices.SortedFunc(maps.Keys(all), func(x, y string) int { return cmp.Or(cmp.Compare(all[y], all[x]), cmp.Compare(x, y)) }) {
		b.add(sample{"size", module, 0, "size", "B", []float64{all[module]}})
	}
	b.add(sample{"size", binary, 0, "size", "B", []float64{float64(shipped.Size())}})
	return nil
}

// moduleOf is the module that a symbol is of, empty for what the linker has made of
// many packages'.
func moduleOf(symbol string, modules []string) string {
	symbol, _, _ = strings.Cut(symbol, "[") // type parameters have paths in them
	if strings.Contains(symbol, ":") {
		return ""
	}
	slash := strings.LastIndexByte(symbol, '/')
	name, _, found := strings.Cut(symbol[slash+1:], ".")
	if !found && slash < 0 {
		return library // assembly's
	}
	path := strings.ReplaceAll(symbol[:slash+1]+name, "%2e", ".")
	best := ""
	for _, m := range modules {
		if (path == m || strings.HasPrefix(path, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	if first, _, _ := strings.Cut(path, "/"); best == "" && first == "main" {
		return modules[0]
	}
	return cmp.Or(best, library)
}

// Modules of less than this are put together in the table, bytes.
const small = 100e3

func sizeTable(r *results) string {
	t := newTable("", "kB", "of the binary")
	total := mean(r.of("size", binary, 0, "size"))
	row := func(name string, bytes float64) {
		t.row(name, fmt.Sprintf("%.0f", bytes/1e3), fmt.Sprintf("%.1f %%", 100*bytes/total))
	}
	row(binary+", stripped", total)
	others, n := 0.0, 0
	for _, name := range r.who("size") {
		switch bytes := mean(r.of("size", name, 0, "size")); {
		case name == binary:
		case bytes < small:
			others += bytes
			n++
		default:
			row(name, bytes)
		}
	}
	row(fmt.Sprintf("%d other modules", n), others)
	return "By the symbols of the same build before it is stripped: a module's code and data, and of the runtime's tables of functions the code's share.\n\n" + t.String()
}
