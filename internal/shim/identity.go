package shim

import (
	"context"
	"strings"

	"github.com/containerd/log"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// Annotations that CRI gives the specification of a container. containerd has them
// in a package that cannot be imported, internal/cri/annotations.
const (
	criSandboxID        = "io.kubernetes.cri.sandbox-id"
	criSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	criSandboxName      = "io.kubernetes.cri.sandbox-name"
	criSandboxUID       = "io.kubernetes.cri.sandbox-uid"
	criSandboxImageName = "io.kubernetes.cri.podsandbox.image-name"
	criContainerName    = "io.kubernetes.cri.container-name"
	criImageName        = "io.kubernetes.cri.image-name"
)

// identity is which container it is, and what of: for its spans, and for the lines
// of the log about it.
type identity struct {
	attrs  []attribute.KeyValue
	fields log.Fields
}

// newIdentity takes of the annotations, which may be anything, what it knows.
func newIdentity(id string, annotations map[string]string) identity {
	who := identity{
		attrs:  []attribute.KeyValue{telemetry.ContainerRuntimeName.String("containerd"), telemetry.ContainerRuntimeDescription.String(RuntimeName)},
		fields: log.Fields{telemetry.LogContainerID: id},
	}
	add := func(key attribute.Key, annotation string, logged bool) {
		value := telemetry.Text(annotations[annotation])
		if value == "" {
			return
		}
		who.attrs = append(who.attrs, key.String(value))
		if logged {
			who.fields[string(key)] = value
		}
	}
	add(telemetry.K8SNamespaceName, criSandboxNamespace, true)
	add(telemetry.K8SPodName, criSandboxName, true)
	add(telemetry.K8SPodUID, criSandboxUID, false)
	add(telemetry.K8SContainerName, criContainerName, true)
	add(telemetry.ContainerName, criContainerName, false)
	add(telemetry.SandboxID, criSandboxID, false)
	image := annotations[criImageName]
	if image == "" {
		image = annotations[criSandboxImageName]
	}
	who.attrs = append(who.attrs, imageAttributes(telemetry.Text(image))...)
	return who
}

// imageAttributes are those of an image that is called ref: NAME[:TAG][@DIGEST], or
// only a digest.
func imageAttributes(ref string) (attrs []attribute.KeyValue) {
	name, digest, digested := strings.Cut(ref, "@")
	tag := ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	if name == "" || name == "sha256" {
		return nil
	}
	attrs = append(attrs, telemetry.ContainerImageName.String(name))
	if tag != "" {
		attrs = append(attrs, telemetry.ContainerImageTags.StringSlice([]string{tag}))
	}
	if digested {
		attrs = append(attrs, telemetry.ContainerImageRepoDigests.StringSlice([]string{name + "@" + digest}))
	}
	return attrs
}

// in is ctx with a logger whose lines say which container they are about and, when
// ctx has a span, which that is.
func (who identity) in(ctx context.Context) context.Context {
	l := log.G(ctx).WithFields(who.fields)
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		l = l.WithFields(log.Fields{telemetry.LogTraceID: sc.TraceID().String(), telemetry.LogSpanID: sc.SpanID().String()})
	}
	if c := callOf(ctx); c != nil {
		c.log = l
	}
	return log.WithLogger(ctx, l)
}

// A call of the task service, as its context has it.
type call struct {
	method string     // SERVICE/METHOD
	log    *log.Entry // for what is said of the call when it is over
}

type callKey struct{}

// callOf is nil for a context of no call.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}
