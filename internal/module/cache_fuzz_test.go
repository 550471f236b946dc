package module

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Ways in which FuzzEntry has a file of an entry be another.
const (
	asWritten  = iota
	contentIs  // the given bytes
	bitsOf     // are other, where the given bytes have ones from an offset on
	endsAt     // an offset
	isLinkTo   // a symbolic link to the given name
	isDir      // a directory
	isOthers   // another user's
	isGone     //
	isFIFO     //
	numberOfIt //
)

// FuzzEntry has files of an entry be others than they were: what is found then is what was
// written, if need be written again, and nothing else.
func FuzzEntry(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root: run `sudo make test`")
	}
	for file := range byte(4) {
		for how := range byte(numberOfIt) {
			f.Add(file, how, uint16(3), []byte("\x01"))
			f.Add(file, how, uint16(40), []byte("code"))
			f.Add(file, how, uint16(0), []byte{})
		}
	}
	const code = "what the module was compiled to"
	f.Fuzz(func(t *testing.T, file, how byte, offset uint16, data []byte) {
		c := NewCache(filepath.Join(t.TempDir(), "cache"), "v1.2.3")
		m := moduleFile(t, "module")
		a, err := get(t.Context(), c, m, leavingFile(t, code))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(c.dir, a.entry, []string{"sums", "code/engine/code", "code", "."}[file%4])
		a.Close()
		if err := change(path, how%numberOfIt, int(offset), data); err != nil {
			t.Skip(err) // that cannot be had
		}
		for range 2 {
			a, err := get(t.Context(), c, m, leavingFile(t, code))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(codeDir(a) + "/engine/code"); err != nil || string(got) != code {
				t.Fatalf("got %q, %v", got, err)
			}
			a.Close()
		}
		if all, err := c.List(); err != nil || len(all) != 1 {
			t.Errorf("got %v, %v, want one entry", all, err)
		}
	})
}

// change has what is at path be another.
func change(path string, how byte, offset int, data []byte) error {
	path = filepath.Clean(path)
	switch how {
	case asWritten:
		return nil
	case endsAt:
		return os.Truncate(path, int64(offset))
	case isOthers:
		return os.Lchown(path, 7, 7)
	}
	old, err := os.ReadFile(path)
	if err != nil && how == bitsOf {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	switch how {
	case contentIs:
		return os.WriteFile(path, data, 0o444)
	case bitsOf:
		for i, b := range data {
			if at := offset + i; at < len(old) {
				old[at] ^= b
			}
		}
		return os.WriteFile(path, old, 0o444)
	case isLinkTo:
		return os.Symlink(string(data), path)
	case isDir:
		return os.Mkdir(path, fs.FileMode(offset)&0o777)
	case isFIFO:
		return unix.Mkfifo(path, 0o444)
	case isGone:
		return nil
	}
	return errors.New("no such way")
}

// FuzzSums reads sums: those that are taken are as this program writes them.
func FuzzSums(f *testing.F) {
	f.Add([]byte("entry"), []byte{}, false)
	whole := encodeSums("entry", []sum{{"engine/code", 12, 0xdeadbeef}, {"module", 0, 0}})
	f.Add([]byte("entry"), whole, false)
	f.Add([]byte("other"), whole, false)
	f.Add([]byte("entry"), whole[:len(whole)-1], false)
	for _, body := range []string{
		"", "\n", sumsHeader, sumsHeader + "\n", sumsHeader + "\nentry\n", sumsHeader + "\nentry\n0 0 x\n", sumsHeader + "\nentry\n00000000 -1 x\n",
		sumsHeader + "\nentry\n00000000 1 ../x\n", sumsHeader + "\nentry\n00000000 1 /x\n", sumsHeader + "\nentry\n00000000 1 \n", sumsHeader + "\nentry\nx 1 y\n",
		sumsHeader + "\nentry\n00000000 99999999999999999999 x\n", sumsHeader + "\nentry\n00000000 1 a b\n", sumsHeader + "\nentry\n+0000000 +1 x\n",
	} {
		f.Add([]byte("entry"), []byte(body), true)
	}
	f.Fuzz(func(t *testing.T, entry, data []byte, summed bool) {
		if summed { // as who can compute a sum
			data = fmt.Appendf(bytes.Clone(data), "%08x\n", crc32.Checksum(data, castagnoli()))
		}
		sums, err := decodeSums(string(entry), data)
		if err != nil {
			return
		}
		for _, s := range sums {
			if s.size < 0 || !fs.ValidPath(s.path) {
				t.Errorf("got %+v", s)
			}
		}
		if again := encodeSums(string(entry), sums); !bytes.Equal(again, data) {
			t.Errorf("%q is read as %q", data, again)
		}
	})
}
