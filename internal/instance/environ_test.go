package instance

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// environGuest has one page of memory, and "sizes" and "get" that call WASI's
// environ_sizes_get and environ_get with their own two arguments.
func environGuest() []byte {
	name := func(s string) string { return string(rune(len(s))) + s }
	section := func(id byte, s string) string { return string([]byte{id, byte(len(s))}) + s }
	const wasi = wasi_snapshot_preview1.ModuleName
	call := func(f string) string { return "\x08\x00\x20\x00\x20\x01\x10" + f + "\x0b" }
	return []byte("\x00asm\x01\x00\x00\x00" +
		section(1, "\x01\x60\x02\x7f\x7f\x01\x7f") +
		section(2, "\x02"+name(wasi)+name("environ_sizes_get")+"\x00\x00"+name(wasi)+name("environ_get")+"\x00\x00") +
		section(3, "\x02\x00\x00") +
		section(5, "\x01\x00\x01") +
		section(7, "\x02"+name("sizes")+"\x00\x02"+name("get")+"\x00\x03") +
		section(10, "\x02"+call("\x00")+call("\x01")))
}

// An environGuestTest calls the functions as a guest does.
type environGuestTest struct {
	t   *testing.T
	mod api.Module
}

func newEnvironGuestTest(t *testing.T, env []string) *environGuestTest {
	t.Helper()
	r := wazero.NewRuntime(t.Context())
	t.Cleanup(func() { r.Close(t.Context()) })
	b := r.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	newEnviron(env).export(b)
	if _, err := b.Instantiate(t.Context()); err != nil {
		t.Fatal(err)
	}
	mod, err := r.Instantiate(t.Context(), environGuest())
	if err != nil {
		t.Fatal(err)
	}
	return &environGuestTest{t, mod}
}

func (g *environGuestTest) call(name string, a, b uint32) (errno uint64) {
	g.t.Helper()
	result, err := g.mod.ExportedFunction(name).Call(g.t.Context(), uint64(a), uint64(b))
	if err != nil {
		g.t.Fatal(err)
	}
	return result[0]
}

// env is what the guest sees.
func (g *environGuestTest) env() (env []string) {
	g.t.Helper()
	if errno := g.call("sizes", 0, 4); errno != 0 {
		g.t.Fatalf("errno %d", errno)
	}
	m := g.mod.Memory()
	head, _ := m.Read(0, 8)
	count, size := binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[4:])
	if errno := g.call("get", 8, 8+4*count); errno != 0 {
		g.t.Fatalf("errno %d", errno)
	}
	for i := range count {
		at, _ := m.ReadUint32Le(8 + 4*i)
		rest, _ := m.Read(at, 8+4*count+size-at)
		text, _, ok := strings.Cut(string(rest), "\x00")
		if !ok {
			g.t.Errorf("%q does not end", rest)
		}
		env = append(env, text)
	}
	return env
}

func TestAGuestSeesItsEnvironment(t *testing.T) {
	for _, tt := range []struct{ env, want []string }{
		{nil, nil},
		{[]string{"A=1", "B=x=y", "C=", "D", "É=ü"}, []string{"A=1", "B=x=y", "C=", "D=", "É=ü"}},
		{[]string{"A=1", "B=2", "A=3", "A", "B=4"}, []string{"A=", "B=4"}}, // the last one, in the place of the first
	} {
		if got := newEnvironGuestTest(t, tt.env).env(); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestAGuestWithoutRoomForItsEnvironmentIsTold(t *testing.T) {
	g := newEnvironGuestTest(t, []string{"A=1", "B=2"})
	const end = 64 << 10
	for _, tt := range []struct {
		name string
		a, b uint32
	}{{"sizes", end - 3, 0}, {"sizes", 0, end - 3}, {"get", end - 7, 0}, {"get", 0, end - 7}, {"get", ^uint32(0), 0}, {"get", 0, ^uint32(0)}} {
		if got := g.call(tt.name, tt.a, tt.b); got != errnoFault {
			t.Errorf("%s(%d, %d): got errno %d, want %d", tt.name, tt.a, tt.b, got, errnoFault)
		}
	}
	if got := g.call("get", end-8, end-16); got != 0 {
		t.Errorf("just enough: got errno %d", got)
	}
}

// That it comes to an end is the test: as much as config.json has room for.
func TestALargeEnvironmentIsNoWork(t *testing.T) {
	env := make([]string, 400_000)
	for i := range env {
		env[i] = fmt.Sprint("V", i)
	}
	if got, want := len(environment(Config{Env: env, Cwd: "/"}).starts), len(env)+1; got != want {
		t.Errorf("got %d variables, want %d", got, want)
	}
}

func TestTheWorkingDirectoryIsInTheEnvironmentUnlessItIsGiven(t *testing.T) {
	for _, tt := range []struct{ env, want []string }{
		{nil, []string{"PWD=/w"}},
		{[]string{"PWDX=1"}, []string{"PWDX=1", "PWD=/w"}},
		{[]string{"PWD=/x", "A=1"}, []string{"PWD=/x", "A=1"}},
		{[]string{"PWD"}, []string{"PWD="}},
	} {
		e := environment(Config{Env: tt.env, Cwd: "/w"})
		if got := strings.Split(strings.TrimSuffix(string(e.text), "\x00"), "\x00"); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.env, got, tt.want)
		}
	}
}
