package module

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sumsName = "sums"
	codeName = "code"

	// sumsHeader is the first line of sums. Its number is that of the format.
	sumsHeader = "compiled module, format 1"

	// maxSums bounds a file of sums, bytes; maxFiles what it lists.
	maxSums  = 64 << 10
	maxFiles = 64

	// usedEvery is how old the time of the last use may be until it is written again.
	usedEvery = time.Minute
)

// castagnoli is the polynomial that processors have an instruction for. What it is to find
// is not malice, for which one would have to be root, but what disks, memory and crashes do.
//
// Not before it is needed: its tables take 0.25 ms, of which an instance process has no use.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// A sum says what a file below code is.
type sum struct {
	path string
	size int64
	crc  uint32
}

// encodeSums is the content of the sums of an entry: a line with its name, so that it is
// known under no other; one for each file; and one with the sum of all before.
func encodeSums(entry string, sums []sum) []byte {
	b := fmt.Appendf(nil, "%s\n%s\n", sumsHeader, entry)
	for _, s := range sums {
		b = fmt.Appendf(b, "%08x %d %s\n", s.crc, s.size, s.path)
	}
	return fmt.Appendf(b, "%08x\n", crc32.Checksum(b, castagnoli()))
}

// decodeSums reads the sums of an entry.
func decodeSums(entry string, data []byte) ([]sum, error) {
	const last = 9 // bytes of the last line
	if len(data) < last {
		return nil, errors.New("sums: cut off")
	}
	body := data[:len(data)-last]
	if got := fmt.Sprintf("%08x\n", crc32.Checksum(body, castagnoli())); got != string(data[len(body):]) {
		return nil, errors.New("sums: have another sum themselves")
	}
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if lines[0] != sumsHeader || len(lines) < 2 {
		return nil, errors.New("sums: of another format")
	}
	if lines[1] != entry {
		return nil, errors.New("sums: of another entry")
	}
	var sums []sum
	for _, line := range lines[2:] {
		f := strings.SplitN(line, " ", 3)
		if len(f) != 3 {
			return nil, errors.New("sums: not three fields in a line")
		}
		crc, err1 := strconv.ParseUint(f[0], 16, 32)
		size, err2 := strconv.ParseInt(f[1], 10, 64)
		if err1 != nil || err2 != nil || size < 0 || !fs.ValidPath(f[2]) {
			return nil, errors.New("sums: not a sum, a size and a path in a line")
		}
		sums = append(sums, sum{f[2], size, uint32(crc)})
	}
	if string(encodeSums(entry, sums)) != string(data) {
		return nil, errors.New("sums: not as they are written")
	}
	return sums, nil
}

// openIn opens path, of names and no "..", below dir. No symbolic link is followed.
func openIn(dir *os.File, path string, flags int) (*os.File, error) {
	at := int(dir.Fd())
	for {
		name, rest, more := strings.Cut(path, "/")
		how := flags | unix.O_NONBLOCK // what is a FIFO in place of a file must not be waited for
		if more {
			how = unix.O_PATH | unix.O_DIRECTORY
		}
		fd, err := unix.Openat(at, name, how|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if at != int(dir.Fd()) {
			unix.Close(at)
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if !more {
			return os.NewFile(uintptr(fd), name), nil
		}
		at, path = fd, rest
	}
}

// isRoots looks whether f is of the given type, and root's to write alone.
func isRoots(f *os.File, format uint32) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != format:
		return st, fmt.Errorf("%s: of another type", f.Name())
	case st.Uid != 0 || st.Mode&0o022 != 0:
		return st, fmt.Errorf("%s: owned by uid %d with mode %#o", f.Name(), st.Uid, st.Mode&0o7777)
	}
	return st, nil
}

// find opens an entry. It is nil where there is none, or one
// that somebody is about to remove; and with an error where what is there is not an entry.
func find(dir *os.File, entry string) (_ *Artifact, broken error) {
	f, err := openIn(dir, entry+"/"+sumsName, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		if unix.Faccessat(int(dir.Fd()), entry, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return nil, err // without sums
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a := &Artifact{Hit: true, entry: entry, sums: f}
	defer func() {
		if a.Dir == nil {
			f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, nil // somebody removes it
	}
	st, err := isRoots(f, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	if st.Nlink == 0 {
		return nil, nil // somebody has removed it
	}
	sums, err := readSums(f, entry)
	if err != nil {
		return nil, err
	}
	code, err := openIn(dir, entry+"/"+codeName, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	if _, err = isRoots(code, unix.S_IFDIR); err != nil {
		code.Close()
		return nil, err
	}
	a.Dir, a.files = code, sums
	for _, s := range sums {
		a.Size += s.size
	}
	if now := time.Now(); now.Sub(time.Unix(st.Mtim.Unix())).Abs() > usedEvery {
		// Where that cannot be written, nothing is removed by it.
		t := unix.NsecToTimespec(now.UnixNano())
		_ = unix.UtimesNanoAt(int(dir.Fd()), entry+"/"+sumsName, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	}
	return a, nil
}

// Verify reads an artifact that was there already, and compares it with its sums. Nothing
// of it may be executed before that. It may be called while others read it.
func (a *Artifact) Verify() error {
	if !a.Hit {
		return nil
	}
	if err := verify(a.Dir, a.files); err != nil {
		return fmt.Errorf("compile cache: entry %s: %w", a.entry, err)
	}
	return nil
}

func readSums(f *os.File, entry string) ([]sum, error) {
	data, err := io.ReadAll(io.LimitReader(f, maxSums))
	if err != nil {
		return nil, err
	}
	return decodeSums(entry, data)
}

// verify reads the files below code, and compares them with the given sums.
func verify(code *os.File, sums []sum) error {
	if len(sums) == 0 {
		return errors.New("sums: of nothing")
	}
	longest := slices.MaxFunc(sums, func(a, b sum) int { return cmp.Compare(a.size, b.size) })
	buf := make([]byte, min(longest.size+1, 128<<10)) // one more: to see the end
	for _, s := range sums {
		if err := s.verify(code, buf); err != nil {
			return err
		}
	}
	return nil
}

func (s sum) verify(code *os.File, buf []byte) error {
	f, err := openIn(code, s.path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := isRoots(f, unix.S_IFREG)
	if err != nil {
		return err
	}
	if st.Size != s.size {
		return fmt.Errorf("%s: %d bytes long, was %d", s.path, st.Size, s.size)
	}
	crc, err := copySum(io.Discard, f, buf)
	if err != nil {
		return err
	}
	if crc != s.crc {
		return fmt.Errorf("%s: has another sum than when it was written", s.path)
	}
	return nil
}

// copySum copies src, and returns its sum.
func copySum(dst io.Writer, src *os.File, buf []byte) (crc uint32, err error) {
	for {
		n, err := src.Read(buf)
		crc = crc32.Update(crc, castagnoli(), buf[:n])
		if _, err := dst.Write(buf[:n]); err != nil {
			return 0, err
		}
		if err == io.EOF {
			return crc, nil
		}
		if err != nil {
			return 0, err
		}
	}
}
