package shim

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/log"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// said are attributes as a map.
func said(attrs []attribute.KeyValue) map[string]any {
	m := map[string]any{}
	for _, kv := range attrs {
		m[string(kv.Key)] = kv.Value.AsInterface()
	}
	return m
}

func TestTheNameOfAnImageIsTakenApart(t *testing.T) {
	const digest = "sha256:9b1b3a0e3ac4a8d1d3e1e6a1f4bb6d1c5a5a6f5e0c4a8d1d3e1e6a1f4bb6d1c5"
	for ref, want := range map[string]map[string]any{
		"docker.io/library/app:1.2":       {"container.image.name": "docker.io/library/app", "container.image.tags": []string{"1.2"}},
		"localhost:5000/app":              {"container.image.name": "localhost:5000/app"},
		"localhost:5000/app:x":            {"container.image.name": "localhost:5000/app", "container.image.tags": []string{"x"}},
		"docker.io/library/app@" + digest: {"container.image.name": "docker.io/library/app", "container.image.repo_digests": []string{"docker.io/library/app@" + digest}},
		"docker.io/library/a:1@" + digest: {"container.image.name": "docker.io/library/a", "container.image.tags": []string{"1"}, "container.image.repo_digests": []string{"docker.io/library/a@" + digest}},
		"app":                             {"container.image.name": "app"},
		digest:                            {},
		"":                                {},
		":":                               {},
		"@":                               {},
	} {
		if got := said(imageAttributes(ref)); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %v, want %v", ref, got, want)
		}
	}
}

// Whoever makes a container makes its annotations.
func TestAnAnnotationIsCutAndMadeUTF8(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	who := newIdentity("id", map[string]string{
		criSandboxName: "a\xffb", criSandboxUID: long, criImageName: long + ":" + long, criContainerName: "", "another": "secret",
	})
	got := said(who.attrs)
	want := map[string]any{
		"container.runtime.name": "containerd", "container.runtime.description": RuntimeName,
		"k8s.pod.name": "a\ufffdb", "k8s.pod.uid": long[:1024], "container.image.name": long[:1024],
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %.300v, want %.300v", fmt.Sprint(got), fmt.Sprint(want))
	}
	if want := (log.Fields{"id": "id", "k8s.pod.name": "a\ufffdb"}); !reflect.DeepEqual(who.fields, want) {
		t.Errorf("got %v, want %v", who.fields, want)
	}
}

func TestALoggerNamesTheSpanOfItsContext(t *testing.T) {
	who := newIdentity("a", nil)
	sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}}) // not sampled
	c := &call{}
	ctx := trace.ContextWithSpanContext(context.WithValue(context.Background(), callKey{}, c), sc)
	want := log.Fields{"id": "a", "trace_id": sc.TraceID().String(), "span_id": sc.SpanID().String()}
	if got := log.Fields(log.G(who.in(ctx)).Data); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if !reflect.DeepEqual(log.Fields(c.log.Data), want) {
		t.Errorf("the call: got %v, want %v", c.log.Data, want)
	}
	if got, want := log.Fields(log.G(who.in(context.Background())).Data), (log.Fields{"id": "a"}); !reflect.DeepEqual(got, want) {
		t.Errorf("without a span: got %v, want %v", got, want)
	}
}
