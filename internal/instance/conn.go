package instance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a packet on the control socket, bytes.
const maxMessage = 64 << 10

// A Conn is one end of the control socket between the shim and an instance
// process. Receive blocks the thread; it ends with [io.EOF] when the process at the
// other end is gone. The shim's Send never does: the two messages that a process
// gets from it have room in the socket, read or not.
type Conn struct {
	f *os.File
	// walled is whether only read(2) and write(2) may be called: the process's end.
	walled bool
}

// NewConn makes a connected pair: the caller's own end, and one to hand on.
func NewConn() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("control socket: %w", err)
	}
	return &Conn{f: os.NewFile(uintptr(fds[0]), "control")}, os.NewFile(uintptr(fds[1]), "control"), nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.f.Close() }

// HangUp has Receive return what has arrived, and then [io.EOF], also when somebody
// still has the other end.
func (c *Conn) HangUp() error { return unix.Shutdown(int(c.f.Fd()), unix.SHUT_RDWR) }

// Send sends a message with descriptors, which stay the caller's.
func (c *Conn) Send(m Message, files ...*os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		return fmt.Errorf("control message of %d bytes: the limit is %d", len(data), maxMessage)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	for {
		if c.walled {
			_, err = unix.Write(int(c.f.Fd()), data)
		} else {
			err = unix.Sendmsg(int(c.f.Fd()), data, rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		}
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("control message: %w", err)
	}
	return nil
}

// Receive waits for a message, and for wantFiles descriptors with it. A message
// with another number of them is an error, as is one that is an [Error], which
// is returned as such.
//
// A descriptor that is not wanted never becomes this process's own: to close it
// again could take for ever, as with a file of a FUSE server.
func (c *Conn) Receive(wantFiles int) (m Message, files []*os.File, err error) {
	data := make([]byte, maxMessage+1) // one more shows what is too long
	var rights []byte
	if wantFiles > 0 {
		rights = make([]byte, unix.CmsgSpace(4*wantFiles))
	}
	var n, rn, flags int
	for {
		if !c.walled || wantFiles > 0 {
			n, rn, flags, _, err = unix.Recvmsg(int(c.f.Fd()), data, rights, unix.MSG_CMSG_CLOEXEC)
		} else {
			n, err = unix.Read(int(c.f.Fd()), data)
		}
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return m, nil, fmt.Errorf("control message: %w", err)
	}
	if rn > 0 {
		if files, err = parseRights(rights[:rn]); err != nil {
			return m, nil, err
		}
	}
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	if n == 0 {
		return m, files, io.EOF
	}
	if n > maxMessage || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return m, files, errors.New("control message: truncated")
	}
	if err := json.Unmarshal(data[:n], &m); err != nil {
		return m, files, fmt.Errorf("control message: %w", err)
	}
	if m.Error != nil {
		return m, files, m.Error
	}
	if len(files) != wantFiles {
		return m, files, fmt.Errorf("control message: %d descriptors, want %d", len(files), wantFiles)
	}
	return m, files, nil
}

func parseRights(b []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}
