package otlp

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
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
