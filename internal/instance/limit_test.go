package instance

import (
	"io"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAProcessIsToldItsConfigThroughAFile(t *testing.T) {
	want := Config{Args: []string{"a", "b"}, Env: []string{"K=V"}, Cwd: "/", Umask: 0o27}
	f, shims, err := NewConfig(want, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer shims.Close()
	got, ours, err := readConfig(f)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	f.Close()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := ours.Get(); got != 5 {
		t.Errorf("a limit of %d, want 5", got)
	}
	shims.Set(7)
	if got := ours.Get(); got != 7 {
		t.Errorf("a limit of %d after it was set to 7", got)
	}
	if err := shims.Close(); err != nil {
		t.Error(err)
	}
	shims.Set(9) // an update may come as the process ends
	if got := ours.Get(); got != 7 {
		t.Errorf("a limit of %d, set when it was closed", got)
	}
}

// A process that a guest has taken over has the file's descriptor, if it kept it,
// and its mapping.
func TestAProcessCannotChangeItsLimit(t *testing.T) {
	f, shims, err := NewConfig(Config{}, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer shims.Close()
	_, ours, err := readConfig(f)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := unix.Mprotect(ours.page, unix.PROT_READ|unix.PROT_WRITE); err == nil {
		t.Error("its mapping can be made one to write to")
	}
	if b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("the file can be mapped to write to")
		_ = unix.Munmap(b)
	}
	if _, err := f.WriteAt(make([]byte, 8), 0); err == nil {
		t.Error("the file can be written")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("the file can be cut short: the shim would fault")
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096); err == nil {
		t.Error("the file can be emptied")
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err == nil {
		t.Error("the file can be sealed further")
	}
	if got := ours.Get(); got != 5 {
		t.Errorf("a limit of %d, want 5", got)
	}
}

func TestAFileThatIsNoConfigIsRefused(t *testing.T) {
	fd, err := unix.MemfdCreate("config", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "config")
	defer f.Close()
	if _, _, err := readConfig(f); err == nil {
		t.Error("an empty one: no error")
	}
	if _, err := io.WriteString(f, "nonsense"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readConfig(f); err == nil {
		t.Error("nonsense: no error")
	}
}
