package otlp

import (
	"bytes"
	"context"
	"errors"
	"log"
	"os"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/hostile"
)

func TestWhatIsSaidOfAFailureHasNoSecretAndAnEnd(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret%2Fone, x = s3cret-two ,broken-s3cret")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "api-key=s3cret-three,short=ab")
	t.Setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "api-key=s3cret-%zz")
	sayable := func(s string) (said string) {
		discreet(func(err error) { said = err.Error() })(errors.New(s))
		return said
	}
	for _, tt := range []struct{ name, said, want string }{
		{"a reason", "connection refused", "connection refused"},
		{"a value as it is written", "x Bearer%20s3cret%2Fone y", "x [...] y"},
		{"a value as it is sent", "[Bearer s3cret/one]", "[[...]]"},
		{"the secret of a scheme", "token s3cret/one is wrong", "token [...] is wrong"},
		{"white space about it", "s3cret-two.", "[...]."},
		{"one that is no pair", `"input"="broken-s3cret"`, `"input"="[...]"`},
		{"one of a signal", "s3cret-three", "[...]"},
		{"one that is not escaped well", "s3cret-%zz", "[...]"},
		{"one too short to be secret", "absent", "absent"},
		{"what is no text", "a\xffb", "a\ufffdb"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := sayable(tt.said); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	long := sayable("begin " + strings.Repeat("é", 1<<20) + " s3cret-two end")
	if len(long) > 2*maxReport || !strings.HasPrefix(long, "begin") || !strings.HasSuffix(long, "[...] end") || !utf8.ValidString(long) {
		t.Errorf("%d bytes: %.100s", len(long), long)
	}
}

// Nothing of a collector goes to the standard error, not even by net/http, which
// quotes one that speaks out of turn.
func TestACollectorThatSpeaksOutOfTurnIsNotQuotedAtLength(t *testing.T) {
	s, err := hostile.Raw(hostile.Garbage)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr bytes.Buffer
	log.SetOutput(&stderr)
	defer log.SetOutput(os.Stderr)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+s.Addr())
	var mu sync.Mutex
	var said []string
	provider, shutdown := Setup(Shim{ID: "ns/id"}, nil, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, err.Error())
	})
	for range 20 {
		_, span := telemetry.StartOperation(t.Context(), provider, telemetry.TaskCreate)
		span.End()
		_ = provider.(interface{ ForceFlush(context.Context) error }).ForceFlush(t.Context()) // fails
	}
	_ = shutdown(t.Context()) // nothing is left
	log.Print("of net/http")
	mu.Lock()
	defer mu.Unlock()
	if stderr.Len() > 0 {
		t.Errorf("on the standard error: %.200q", stderr.String())
	}
	if len(said) > 1 {
		t.Errorf("%d lines in a minute", len(said))
	}
	for _, s := range said {
		if len(s) > 2*maxReport {
			t.Errorf("%d bytes are said", len(s))
		}
	}
}
