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
// process. Its calls block the thread; they end with [io.EOF] or EPIPE when the
// process at the other end is gone. Without descriptors they are read(2) and
// write(2), which an instance process may still call when it is walled in.
type Conn struct{ f *os.File }

// NewConn makes a connected pair: the caller's own end, and one to hand on.
func NewConn() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("control socket: %w", err)
	}
	return &Conn{os.NewFile(uintptr(fds[0]), "control")}, os.NewFile(uintptr(fds[1]), "control"), nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.f.Close() }

// Send sends a message with descriptors, which stay the caller's.
func (c *Conn) Send(m Message, files ...*os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		return fmt.Errorf("control message of %d bytes: the limit is %d", len(data), maxMessage)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	for {
		if len(fds) > 0 {
			err = unix.Sendmsg(int(c.f.Fd()), data, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		} else {
			_, err = unix.Write(int(c.f.Fd()), data)
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
// is returned as such. Where none is wanted, the kernel closes what comes.
func (c *Conn) Receive(wantFiles int) (m Message, files []*os.File, err error) {
	data := make([]byte, maxMessage+1) // one more shows what is too long
	rights := make([]byte, unix.CmsgSpace(4*4))
	var n, rn, flags int
	for {
		if wantFiles > 0 {
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
