// Package hostile has collectors that are not what one wishes for, on real
// sockets: for the tests that telemetry is never in the way, and the benchmark.
package hostile

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// A Server is one of them, on a loopback port.
type Server struct {
	listener net.Listener
	accepted atomic.Int64
	close    func()
}

// Addr is where it listens, host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Accepted is how many connections there have been.
func (s *Server) Accepted() int { return int(s.accepted.Load()) }

// Close ends it, with all its connections.
func (s *Server) Close() { s.close() }

// Raw is a server whose connections are handled by f. They are closed when f is
// done, or the server.
func Raw(f func(net.Conn)) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l}
	var (
		mu    sync.Mutex
		conns = map[net.Conn]bool{} // guarded by mu; nil when closed
		wg    sync.WaitGroup
	)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			s.accepted.Add(1)
			mu.Lock()
			if conns == nil {
				c.Close()
			} else {
				conns[c] = true
				wg.Go(func() {
					defer func() {
						c.Close()
						mu.Lock()
						delete(conns, c)
						mu.Unlock()
					}()
					f(c)
				})
			}
			mu.Unlock()
		}
	})
	s.close = func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		conns = nil
		mu.Unlock()
		wg.Wait()
	}
	return s, nil
}

// Silent reads all, and says nothing.
func Silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// Reset closes with an RST.
func Reset(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }

// Settled is an HTTP/2 server up to its settings, and silent from there.
func Settled(c net.Conn) {
	const settings, ack = "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x00\x04\x01\x00\x00\x00\x00"
	_, _ = io.WriteString(c, settings+ack)
	Silent(c)
}

// Garbage says anything, without end.
func Garbage(c net.Conn) {
	g := rand.NewChaCha8([32]byte{})
	_, _ = io.Copy(c, g)
}

// Headers is an answer of HTTP/1 whose headers have no end.
func Headers(c net.Conn) {
	_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n")
	for i := 0; err == nil; i++ {
		_, err = fmt.Fprintf(c, "X-%d: %01000d\r\n", i, i)
	}
}

// HTTP is a server of HTTP/1 and 2, with TLS when there is a configuration.
func HTTP(config *tls.Config, f http.HandlerFunc) (*Server, error) {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(config != nil)
	protocols.SetUnencryptedHTTP2(config == nil)
	return web(config, &protocols, f)
}

// HTTP1 is a server of HTTP/1 only, and so not of gRPC.
func HTTP1(f http.HandlerFunc) (*Server, error) {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return web(nil, &protocols, f)
}

// GRPC is a real server of gRPC, without a service.
func GRPC() (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l}
	server := grpc.NewServer()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(counted{l, s}) // until it is stopped
	}()
	s.close = func() {
		server.Stop()
		<-done
	}
	return s, nil
}

// counted is a listener of a server, which counts.
type counted struct {
	net.Listener
	server *Server
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.server.accepted.Add(1)
	}
	return conn, err
}

func web(config *tls.Config, protocols *http.Protocols, f http.HandlerFunc) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l}
	server := &http.Server{
		Handler: f, Protocols: protocols, TLSConfig: config, ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.accepted.Add(1)
			}
		},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if config != nil {
			_ = server.ServeTLS(l, "", "") // until it is closed
		} else {
			_ = server.Serve(l)
		}
	}()
	s.close = func() {
		server.Close()
		<-done
	}
	return s, nil
}

func isGRPC(r *http.Request) bool { return r.ProtoMajor == 2 }

// Answer answers an export in its own protocol: with a status of gRPC or of HTTP,
// and a text about it.
func Answer(w http.ResponseWriter, r *http.Request, grpcStatus, httpStatus int, text string) {
	_, _ = io.Copy(io.Discard, r.Body)
	if !isGRPC(r) {
		w.WriteHeader(httpStatus)
		_, _ = io.WriteString(w, text)
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	if grpcStatus == 0 {
		_, _ = w.Write(make([]byte, 5)) // an empty message
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", fmt.Sprint(grpcStatus))
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", url.PathEscape(text))
}

// Huge answers with size bytes.
func Huge(size int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/x-protobuf")
		if isGRPC(r) {
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = w.Write([]byte{0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)})
		}
		block := make([]byte, 1<<16)
		for n := int64(0); n < size; n += int64(len(block)) {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
}

// Slow answers each export as it should, after a while.
func Slow(d time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(d):
			Answer(w, r, 0, http.StatusOK, "")
		case <-r.Context().Done():
		}
	}
}

// Full is a listening socket whose backlog is full: what is sent there to connect
// is swallowed.
func Full() (*Server, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var held []net.Conn
	closeAll := func() {
		for _, c := range held {
			c.Close()
		}
		unix.Close(fd)
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		closeAll()
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	for range 16 {
		c, err := net.DialTimeout("tcp", addr, 500*time.Millisecond)
		if err == nil {
			held = append(held, c)
			continue
		}
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			return &Server{listener: fixed(addr), close: closeAll}, nil
		}
		closeAll()
		return nil, err
	}
	closeAll()
	return nil, errors.New("the backlog does not fill")
}

// fixed is the address of a listener that is none of package net.
type fixed string

func (f fixed) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (f fixed) Close() error              { return nil }
func (f fixed) Addr() net.Addr            { return f }
func (f fixed) Network() string           { return "tcp" }
func (f fixed) String() string            { return string(f) }
