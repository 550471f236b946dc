package shim

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/atomicfile"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/containerd-shim-wazero/containerd-shim-wazero/internal/quiet" // a `start` is
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/shim/entry"
)

const (
	// maxParams bounds what is read of a `start`'s standard input.
	maxParams = 10 << 20

	// addressFile of a bundle has the address of the shim for containerd 1.7,
	// which looks for it there after its own restart.
	addressFile = "address"

	// ttrpcAddressEnv is where a containerd up to 2.2 says that it takes events.
	ttrpcAddressEnv = "TTRPC_ADDRESS"
)

// A starter is the command line of a `start`, which is that of its shim. Package shim knows
// it as well, but speaks only with containerd 2.3 and later, see [starter.params].
type starter struct {
	id, namespace, address string
	debug                  bool
}

// parseStart tells whether args are those of a `start` that has become a shim. All that is
// wrong with them is for package shim to say.
func parseStart(args []string) (starter, bool) {
	var s starter
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&s.id, "id", "", "")
	f.StringVar(&s.namespace, "namespace", "", "")
	f.StringVar(&s.address, "address", "", "")
	f.BoolVar(&s.debug, "debug", false, "")
	_ = f.String("publish-binary", "", "")
	_ = f.String("bundle", "", "")
	err := f.Parse(args)
	return s, err == nil && f.Arg(0) == entry.Serve && s.namespace != ""
}

// run answers a `start` of either generation of containerd: what it asks for comes
// on in, and nothing but the answer is printed. This process is to be the shim unless
// there is one already, which is nil.
func (s starter) run(ctx context.Context, in io.Reader) (*server, error) {
	began := time.Now()
	if err := entry.Started(); err != nil {
		return nil, err
	}
	// A signal to the group that containerd is in is none for its shims.
	if err := unix.Setpgid(0, 0); err != nil {
		return nil, os.NewSyscallError("setpgid", err)
	}
	input, err := io.ReadAll(io.LimitReader(in, maxParams))
	if err != nil {
		return nil, fmt.Errorf("read parameters: %w", err)
	}
	params, ok := s.params(input)
	if !ok {
		params = s.oldParams(input)
	}
	result, socket, unlock, err := openSocket(namespaces.WithNamespace(ctx, s.namespace), params)
	if err != nil {
		return nil, err
	}
	defer unlock()
	answer, err := proto.Marshal(result)
	if !ok {
		answer, err = oldAnswer(result)
	}
	if err == nil && socket != nil {
		err = prepare(params)
	}
	if err == nil {
		err = entry.Answer(answer)
	}
	if socket == nil {
		return nil, err
	}
	if err != nil {
		_ = socket.removeLocked() // the error at hand says more
		return nil, err
	}
	return &server{
		id: s.id, namespace: s.namespace, debug: params.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG,
		containerd: params.GetContainerdGrpcAddress(), events: params.GetContainerdTtrpcAddress(),
		socket: socket, began: began, answered: time.Now(),
	}, nil
}

// params are those that containerd 2.3 and later send. What an older one sends,
// the options of the runtime or nothing, may read as such; the identity is right
// in the real ones only.
func (s starter) params(input []byte) (*bootapi.BootstrapParams, bool) {
	p := &bootapi.BootstrapParams{}
	err := proto.Unmarshal(input, p)
	return p, err == nil && len(input) > 0 && p.InstanceID == s.id && p.Namespace == s.namespace
}

// oldParams are those of containerd 2.2 and earlier, which has most of them in the
// command line and the environment.
func (s starter) oldParams(input []byte) *bootapi.BootstrapParams {
	p := &bootapi.BootstrapParams{
		InstanceID: s.id, Namespace: s.namespace,
		ContainerdGrpcAddress: s.address, ContainerdTtrpcAddress: os.Getenv(ttrpcAddressEnv),
	}
	if s.debug {
		p.LogLevel = bootapi.LogLevel_LOG_LEVEL_DEBUG
	}
	options := &anypb.Any{}
	if len(input) > 0 && proto.Unmarshal(input, options) == nil {
		p.Extensions = []*bootapi.Extension{{Value: options}}
	}
	return p
}

// oldAnswer is the answer that containerd 1.7 to 2.2 understands. Version 2 is the
// highest that all of them take; it has them run `start` for every container of
// a pod.
func oldAnswer(result *bootapi.BootstrapResult) ([]byte, error) {
	if err := writeFile(addressFile, []byte(result.Address), 0o644); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"version": 2, "address": result.Address, "protocol": result.Protocol})
}

// writeFile writes a file of the bundle as a whole or not at all.
func writeFile(path string, data []byte, mode os.FileMode) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	f, err := atomicfile.New(path, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		_ = f.Cancel() // the write error says more
		return err
	}
	return f.Close()
}
