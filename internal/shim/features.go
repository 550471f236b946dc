package shim

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox/seccomp"
)

// What runc does and a wasm container may not do yet.

// ociHooks are those that are run. A startContainer hook is a Linux program of the
// container's: a wasm container runs none.
var ociHooks = []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}

// ociFeatures are what both a wasm and a Linux container do, so what may be asked
// of a container without a look at what it runs. A field that is left out says
// nothing.
func ociFeatures() *features.Features {
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         ociHooks,
		MountOptions:  sandbox.MountOptions(),
		Linux: &features.Linux{
			Namespaces: sandbox.NamespaceTypes(),
			Cgroup:     &features.Cgroup{V1: new(true), V2: new(true), Systemd: new(true), SystemdUser: new(false)},
			Seccomp: &features.Seccomp{
				Enabled: new(true), Actions: names(seccomp.Actions()), Operators: names(seccomp.Operators()),
				Archs: names(seccomp.Architectures()), KnownFlags: names(seccomp.Flags()), SupportedFlags: names(seccomp.Flags()),
			},
			Apparmor:        &features.Apparmor{Enabled: new(true)},
			Selinux:         &features.Selinux{Enabled: new(true)},
			IntelRdt:        &features.IntelRdt{Enabled: new(false)},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: new(true)}},
			NetDevices:      &features.NetDevices{Enabled: new(false)},
		},
		Annotations: map[string]string{RuntimeName + ".version": Version()},
		// runc's, and the group: it chooses the shim, and so whose crash is shared.
		PotentiallyUnsafeConfigAnnotations: append([]string{"bundle", "org.systemd.property.", "org.criu.config"}, groupAnnotations...),
	}
}

func names[S ~string](all []S) (names []string) {
	for _, name := range all {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

// Info implements [shim.Shim]. What options there are on the standard input is
// checked and handed back.
func (manager) Info(_ context.Context, in io.Reader) (*types.RuntimeInfo, error) {
	input, err := io.ReadAll(io.LimitReader(in, maxParams))
	if err != nil {
		return nil, fmt.Errorf("read options: %w", err)
	}
	var request *anypb.Any
	if len(input) > 0 {
		request = &anypb.Any{}
		if err := proto.Unmarshal(input, request); err != nil {
			return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if _, err := override(&options.Options{}, request); err != nil {
			return nil, err
		}
	}
	f, err := typeurl.MarshalAnyToProto(ociFeatures())
	if err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	return &types.RuntimeInfo{
		Name:     RuntimeName,
		Version:  &types.RuntimeVersion{Version: Version(), Revision: Revision()},
		Options:  request,
		Features: f,
	}, nil
}
