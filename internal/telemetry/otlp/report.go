package otlp

import (
	"errors"
	"net/url"
	"strings"
)

// maxReport bounds what is said of a failure, bytes: what a collector answered is
// part of it, and may be anything.
const maxReport = 1 << 10

// discreet is report for what may be said: not too much, and nothing of what is
// secret in the headers that go to the collector. A server may answer with what it
// was sent.
func discreet(report func(error)) func(error) {
	hidden := secrets()
	return func(err error) {
		s := err.Error()
		for _, secret := range hidden {
			s = strings.ReplaceAll(s, secret, "[...]")
		}
		if len(s) > maxReport {
			s = s[:maxReport/2] + " [...] " + s[len(s)-maxReport/2:] // what it is about, and the reason
		}
		report(errors.New(strings.ToValidUTF8(s, "\ufffd")))
	}
}

// secrets are the values of the headers, as they are written and as they are sent.
func secrets() (secrets []string) {
	add := func(s string) {
		const short = 4 // bytes; would be found anywhere
		if s = strings.TrimSpace(s); len(s) >= short {
			secrets = append(secrets, s)
		}
	}
	for _, signal := range []string{"", traces, metrics} {
		for pair := range strings.SplitSeq(value(variable(signal, "HEADERS")), ",") {
			name, value, ok := strings.Cut(pair, "=")
			if !ok {
				add(name)
			}
			add(value)
			if v, err := url.PathUnescape(value); err == nil {
				add(v)
				for word := range strings.FieldsSeq(v) { // of "Bearer secret"
					add(word)
				}
			}
		}
	}
	return secrets
}
