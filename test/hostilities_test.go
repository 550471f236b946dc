package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/hostile"
)

// A hostility is a collector, and how a shim is told of it.
type hostility struct {
	// start starts the collector. Env may have it that the protocol is another.
	start func(t *testing.T) (*hostile.Server, []string)
	// away says that nobody can see whether a shim came by.
	away bool
	// protocols are the ones to try, both where it is nil.
	protocols []string
}

func serve(make func() (*hostile.Server, error)) func(t *testing.T) (*hostile.Server, []string) {
	return func(t *testing.T) (*hostile.Server, []string) {
		t.Helper()
		s, err := make()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + s.Addr()}
	}
}

func tcp(f func(net.Conn)) func(t *testing.T) (*hostile.Server, []string) {
	return serve(func() (*hostile.Server, error) { return hostile.Raw(f) })
}

func web(f http.HandlerFunc) func(t *testing.T) (*hostile.Server, []string) {
	return serve(func() (*hostile.Server, error) { return hostile.HTTP(nil, f) })
}

// secure is a server with TLS that is all right but for its certificate, or ours.
func secure(until time.Duration, authority func(t *testing.T, pem []byte) string) func(t *testing.T) (*hostile.Server, []string) {
	return func(t *testing.T) (*hostile.Server, []string) {
		t.Helper()
		pem, config, err := hostile.Certificate(time.Now().Add(until))
		if err != nil {
			t.Fatal(err)
		}
		s, err := hostile.HTTP(config, hostile.Slow(0))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		env := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=https://" + s.Addr()}
		if path := authority(t, pem); path != "" {
			env = append(env, "OTEL_EXPORTER_OTLP_CERTIFICATE="+path)
		}
		return s, env
	}
}

func pemFile(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var hostilities = map[string]hostility{
	"absent": {away: true, start: serve(func() (*hostile.Server, error) {
		s, err := hostile.Raw(hostile.Silent)
		if err == nil {
			s.Close() // nothing listens there now
		}
		return s, err
	})},
	"swallows packets": {away: true, start: serve(hostile.Full)},
	"no such name": {away: true, start: func(*testing.T) (*hostile.Server, []string) {
		return nil, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector.invalid:4317"}
	}},
	"resets": {start: tcp(hostile.Reset)},
	"refuses": {start: web(func(w http.ResponseWriter, r *http.Request) {
		hostile.Answer(w, r, 7, http.StatusForbidden, "permission denied")
	})},
	"refuses at length, with what it was sent": {start: web(func(w http.ResponseWriter, r *http.Request) {
		said := fmt.Sprintf("\x1b[31m%v", r.Header)
		hostile.Answer(w, r, 7, http.StatusForbidden, said+strings.Repeat("no ", 100_000)+said)
	})},
	"has no time": {start: web(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3600")
		hostile.Answer(w, r, 14, http.StatusServiceUnavailable, "later")
	})},
	"accepts and hangs":           {start: tcp(hostile.Silent)},
	"speaks HTTP 2 and hangs":     {start: tcp(hostile.Settled), protocols: []string{"grpc"}},
	"takes the request and hangs": {start: web(hostile.Slow(time.Hour))},
	"slow":                        {start: web(hostile.Slow(5 * time.Second))},
	"says garbage without end":    {start: tcp(hostile.Garbage)},
	"has headers without end":     {start: tcp(hostile.Headers)},
	"answers with a gibibyte":     {start: web(hostile.Huge(1 << 30))},
	"speaks HTTP 1 only":          {protocols: []string{"grpc"}, start: serve(func() (*hostile.Server, error) { return hostile.HTTP1(hostile.Slow(0)) })},
	"has no such service":         {protocols: []string{"grpc"}, start: serve(hostile.GRPC)},
	"speaks gRPC only":            {protocols: []string{"http/protobuf"}, start: serve(hostile.GRPC)},
	"redirects for ever": {start: web(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
	})},
	"an expired certificate":          {start: secure(-time.Hour, pemFile)},
	"an authority nobody knows":       {start: secure(time.Hour, func(*testing.T, []byte) string { return "" })},
	"the authority's file is missing": {away: true, start: secure(time.Hour, func(*testing.T, []byte) string { return "/nowhere/ca.pem" })},
	"the authority's file is garbage": {away: true, start: secure(time.Hour, func(t *testing.T, _ []byte) string { return pemFile(t, []byte("garbage\n")) })},
	"the authority's file is a FIFO": {away: true, start: secure(time.Hour, func(t *testing.T, _ []byte) string {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	})},
	"no TLS where it should be": {start: func(t *testing.T) (*hostile.Server, []string) {
		s, _ := web(hostile.Slow(0))(t)
		return s, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=https://" + s.Addr()}
	}},
	"TLS where it should not be": {start: func(t *testing.T) (*hostile.Server, []string) {
		s, _ := secure(time.Hour, pemFile)(t)
		return s, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + s.Addr()}
	}},
}
