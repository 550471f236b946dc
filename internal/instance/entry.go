package instance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// Files of an entry of the compile cache. An instance process needs no other: not
// the module that it was made of.
const (
	// moduleFile is the module that the engine is given: what [module.Strip] made of
	// it, or all of it.
	moduleFile = "module"
	// codeFile is what the engine made of the module: a [codeHeader], and its bytes.
	codeFile = "code"
)

// entryVersion is the one of these files, for the name of an entry.
const entryVersion = 3

// A codeHeader is what a codeFile begins with. The engine's bytes follow, a part of
// which is the machine code, and then what the guest's memory has in it at first. Both
// of these begin at a page of the file, so that they can be mapped.
type codeHeader struct {
	// Key is what the engine asks for when it is given the moduleFile.
	Key codeKey
	// Begin is where the engine's bytes begin in the file; there are Size of them.
	Begin, Size uint64
	// At is where among these the machine code begins, Length of it. The engine has a
	// checksum of that.
	At, Length uint64
	// ImageAt is where in the guest's memory what it has at first is to be, ImageLength
	// bytes of it: a [module.Image].
	ImageAt, ImageLength uint64
	// ImageSum is a checksum of that, and Sum one of the rest of the engine's bytes, and
	// of this header before it. Their polynomial is the one whose tables are made in no time.
	ImageSum, Sum uint32
}

const (
	codeMagic  = "wz code\n"
	headerSize = len(codeMagic) + 32 + 6*8 + 2*4
)

func (h *codeHeader) encode() []byte {
	b := append(make([]byte, 0, headerSize), codeMagic...)
	b = append(b, h.Key[:]...)
	for _, n := range []uint64{h.Begin, h.Size, h.At, h.Length, h.ImageAt, h.ImageLength} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	b = binary.LittleEndian.AppendUint32(b, h.ImageSum)
	return binary.LittleEndian.AppendUint32(b, h.Sum)
}

func (h *codeHeader) decode(b []byte) error {
	if len(b) != headerSize || string(b[:len(codeMagic)]) != codeMagic {
		return errors.New("not compiled code")
	}
	b = b[copy(h.Key[:], b[len(codeMagic):])+len(codeMagic):]
	for _, n := range []*uint64{&h.Begin, &h.Size, &h.At, &h.Length, &h.ImageAt, &h.ImageLength} {
		*n = binary.LittleEndian.Uint64(b)
		b = b[8:]
	}
	h.ImageSum, h.Sum = binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	const most = 1 << 40 // no sum of them overflows
	if h.Begin < uint64(headerSize) || h.Begin > most || h.Size > most || h.At > h.Size || h.Length > h.Size-h.At || h.ImageAt > most || h.ImageLength > most {
		return errors.New("its parts are not where they can be")
	}
	return nil
}

// image is where in the file the guest's memory begins, and end where that ends.
func (h *codeHeader) image() uint64 { return align(h.Begin + h.Size) }

func (h *codeHeader) end() uint64 {
	if h.ImageLength == 0 {
		return h.Begin + h.Size
	}
	return h.image() + h.ImageLength
}

func align(n uint64) uint64 {
	return (n + module.ImageAlign - 1) / module.ImageAlign * module.ImageAlign
}

// sum is what Sum should be, of an engine's bytes before and after the machine code.
func (h *codeHeader) sum(before, after []byte) uint32 {
	b := h.encode()
	crc := crc32.ChecksumIEEE(b[:len(b)-4])
	return crc32.Update(crc32.Update(crc, crc32.IEEETable, before), crc32.IEEETable, after)
}

// writeEntry compiles a module and puts the files of an entry into dir, which is
// empty.
func writeEntry(ctx context.Context, dir string, code []byte) error {
	compiled, err := translate(ctx, code)
	if err != nil {
		return err
	}
	given, image, err := module.Strip(code)
	var h *codeHeader
	if err == nil {
		h, err = tryEntry(ctx, given, compiled)
	}
	if err != nil { // then the engine shall have all of it
		given, image = code, nil
		if h, err = tryEntry(ctx, given, compiled); err != nil {
			return &Error{Text: fmt.Sprintf("compiled code cannot be loaded: %v", err), Kind: Internal}
		}
	}
	if err := h.write(dir, given, compiled, image); err != nil {
		return &Error{Text: err.Error(), Kind: Internal}
	}
	return nil
}

// translate has the engine compile a module.
func translate(ctx context.Context, code []byte) (compiled *bytes.Reader, err error) {
	r, err := newRuntime(ctx, &codeCache{
		get: func(codeKey) (io.ReadCloser, bool, error) { return nil, false, nil },
		add: func(_ codeKey, b io.Reader) (err error) {
			var ok bool
			if compiled, ok = b.(*bytes.Reader); !ok {
				err = errEngine
			}
			return err
		},
	})
	if err != nil {
		return nil, &Error{Text: err.Error(), Kind: Internal}
	}
	if _, err := r.CompileModule(ctx, code); err != nil {
		return nil, invalid(err)
	}
	if compiled == nil {
		return nil, &Error{Text: errEngine.Error(), Kind: Internal}
	}
	return compiled, nil
}

// tryEntry loads the module with what it was compiled to as an instance process would,
// and tells where in that the machine code is, of which no more is known here than
// that it is the longest part. The result has no image yet, and no checksum.
func tryEntry(ctx context.Context, given []byte, compiled *bytes.Reader) (*codeHeader, error) {
	h := &codeHeader{Size: uint64(compiled.Size())}
	asked := 0
	r, err := newRuntime(ctx, &codeCache{
		get: func(key codeKey) (io.ReadCloser, bool, error) {
			asked++
			h.Key = key
			return &longest{Reader: io.NewSectionReader(compiled, 0, compiled.Size()), header: h}, true, nil
		},
		add: func(codeKey, io.Reader) error { return errMiss },
	})
	if err != nil {
		return nil, err
	}
	defer r.Close(ctx)
	if _, err := r.CompileModule(ctx, given); err != nil {
		return nil, err
	}
	if asked != 1 {
		return nil, errEngine
	}
	h.Begin = align(uint64(headerSize)+h.At) - h.At
	return h, nil
}

// longest notes in a header where what is read at once is the longest.
type longest struct {
	io.Reader
	header *codeHeader
	at     uint64
}

func (l *longest) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if uint64(n) > l.header.Length {
		l.header.At, l.header.Length = l.at, uint64(n)
	}
	l.at += uint64(n)
	return n, err
}

func (l *longest) Close() error { return nil }

// write puts the files of an entry into dir. The image may be nil.
func (h *codeHeader) write(dir string, given []byte, compiled *bytes.Reader, image *module.Image) (err error) {
	before, after := make([]byte, h.At), make([]byte, h.Size-h.At-h.Length)
	if _, err := compiled.ReadAt(before, 0); err != nil && err != io.EOF {
		return err
	}
	if _, err := compiled.ReadAt(after, int64(h.At+h.Length)); err != nil && err != io.EOF {
		return err
	}
	if image == nil {
		image = &module.Image{}
	}
	h.ImageAt, h.ImageLength, h.ImageSum = image.At, uint64(len(image.Bytes)), crc32.ChecksumIEEE(image.Bytes)
	h.Sum = h.sum(before, after)
	if err := os.WriteFile(filepath.Join(dir, moduleFile), given, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, codeFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(h.encode()); err != nil {
		return err
	}
	if _, err := io.Copy(io.NewOffsetWriter(f, int64(h.Begin)), io.NewSectionReader(compiled, 0, compiled.Size())); err != nil {
		return err
	}
	if len(image.Bytes) > 0 {
		_, err = f.WriteAt(image.Bytes, int64(h.image()))
	}
	return err
}

// An entryReader has the files of an entry. It implements what the engine reads
// compiled code from.
type entryReader struct {
	module []byte
	file   *os.File
	header codeHeader
	before []byte // the engine's bytes before the machine code
	after  []byte
	at     uint64 // of the engine's bytes, what comes next
	placed []byte // the machine code, as far as it is the file's and no copy
}

// readEntry reads the entry in dir. What is wrong with it is an error here, or in
// the module's compilation with the result's cache. The caller closes the result.
func readEntry(dir string) (_ *entryReader, err error) {
	f, err := os.Open(filepath.Join(dir, moduleFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	e := &entryReader{}
	if e.module, err = readModule(f); err != nil {
		return nil, err
	}
	if e.file, err = os.Open(filepath.Join(dir, codeFile)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	info, err := e.file.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, headerSize)
	if _, err := e.file.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, err
	}
	h := &e.header
	if err := h.decode(head); err != nil {
		return nil, err
	}
	if uint64(info.Size()) != h.end() {
		return nil, fmt.Errorf("compiled code of %d bytes: want %d", info.Size(), h.end())
	}
	e.before, e.after = make([]byte, h.At), make([]byte, h.Size-h.At-h.Length)
	if _, err := e.file.ReadAt(e.before, int64(h.Begin)); err != nil {
		return nil, err
	}
	if _, err := e.file.ReadAt(e.after, int64(h.Begin+h.At+h.Length)); err != nil {
		return nil, err
	}
	if h.sum(e.before, e.after) != h.Sum {
		return nil, errors.New("its checksum is another one")
	}
	return e, nil
}

// cache is one for the engine that has this entry only.
func (e *entryReader) cache() *codeCache {
	return &codeCache{
		get: func(key codeKey) (io.ReadCloser, bool, error) {
			if key != e.header.Key {
				return nil, false, errMiss
			}
			return io.NopCloser(e), true, nil
		},
		// With a stripped module this would be another program.
		add: func(codeKey, io.Reader) error { return errMiss },
	}
}

// Read gives the engine its bytes, and machine code as the file's own pages.
func (e *entryReader) Read(p []byte) (n int, err error) {
	defer func() { e.at += uint64(n) }()
	h := &e.header
	end := h.At + h.Length
	switch {
	case e.at == h.Size:
		return 0, io.EOF
	case e.at < h.At:
		return copy(p, e.before[e.at:]), nil
	case e.at >= end:
		return copy(p, e.after[e.at-end:]), nil
	}
	if e.at == h.At && uint64(len(p)) == h.Length {
		// Files of a file system may not be executable: then it is a copy.
		n = e.place(p, h.Begin+h.At, unix.PROT_READ|unix.PROT_EXEC)
		e.placed = p[:n]
	}
	rest := p[n:min(uint64(len(p)), end-e.at)]
	more, err := e.file.ReadAt(rest, int64(h.Begin+e.at)+int64(n))
	return n + more, err
}

// place maps as many whole pages of the file as fit over p, from offset at on. P is
// memory that was mapped for nothing but this. It returns how many bytes of it are the
// file's now, which may be none.
func (e *entryReader) place(p []byte, at uint64, protection int) int {
	page := os.Getpagesize()
	whole := len(p) &^ (page - 1)
	begin := unsafe.Pointer(unsafe.SliceData(p)) //nolint:gosec // mmap(2) wants to know where
	if whole == 0 || uintptr(begin)&uintptr(page-1) != 0 {
		return 0
	}
	_, err := unix.MmapPtr(int(e.file.Fd()), int64(at), begin, uintptr(whole), protection, unix.MAP_PRIVATE|unix.MAP_FIXED)
	if err != nil {
		return 0
	}
	return whole
}

// fill puts into a guest's memory what it has at first: the file's own pages, which
// become the guest's when it writes to them.
func (e *entryReader) fill(m *linearMemory) error {
	h := &e.header
	if h.ImageLength == 0 {
		return nil
	}
	if h.ImageAt+h.ImageLength > m.usable {
		return errors.New("what the memory has at first does not fit into it")
	}
	p := m.reserved[h.ImageAt:][:h.ImageLength]
	n := e.place(p, h.image(), unix.PROT_READ|unix.PROT_WRITE)
	if _, err := e.file.ReadAt(p[n:], int64(h.image())+int64(n)); err != nil && err != io.EOF {
		return err
	}
	if crc32.ChecksumIEEE(p) != h.ImageSum {
		return errors.New("the checksum of what the memory has at first is another one")
	}
	letGo(p[:n])
	return nil
}

// letGo gives back pages of a file that were looked at for their checksum: what of them
// is needed comes again.
func letGo(p []byte) {
	if len(p) > 0 {
		_ = unix.Madvise(p, unix.MADV_DONTNEED) // or else there is more in memory than need be
	}
}

// Close closes the files. Code that the engine has read stays.
func (e *entryReader) Close() error {
	letGo(e.placed)
	return e.file.Close()
}
