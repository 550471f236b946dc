package otlp

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// quiet is how long nothing more is said of a collector that fails: it may be away
// for days.
const quiet = time.Minute

// A reporter hands on what OpenTelemetry has to say, which else would go to the
// standard error: all there is to say of variables, and how exports fail now and
// then. It is OpenTelemetry's logger as well as its error handler.
type reporter struct {
	report func(error)

	mu     sync.Mutex
	about  string    // guarded by mu; the variables that are read, empty once all have been
	silent time.Time // guarded by mu; until then nothing is said of exports
}

// reading calls f, which reads the named variables.
func (r *reporter) reading(about string, f func()) {
	set := func(s string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.about = s
	}
	set(about)
	defer set("")
	f()
}

// Handle implements [otel.ErrorHandler].
func (r *reporter) Handle(err error) {
	r.mu.Lock()
	about := r.about
	say := about != "" || !time.Now().Before(r.silent)
	if about == "" && say {
		r.silent = time.Now().Add(quiet)
	}
	r.mu.Unlock()
	switch {
	case about != "":
		r.report(variableError{about, err})
	case say:
		r.report(err)
	}
}

// Init implements [logr.LogSink].
func (*reporter) Init(logr.RuntimeInfo) {}

// OpenTelemetry's levels: of warnings, and of what happens in general.
const (
	levelWarn = 1
	levelInfo = 4
)

// Enabled implements [logr.LogSink].
func (*reporter) Enabled(level int) bool { return level <= levelInfo }

// Info implements [logr.LogSink]. Only that is said which is about variables: a
// warning while they are read, or when the name of one is a key.
func (r *reporter) Info(level int, msg string, kv ...any) {
	for i := 0; i+1 < len(kv); i += 2 {
		if name, ok := kv[i].(string); ok && strings.HasPrefix(name, "OTEL_") {
			r.report(variableError{name, errors.New(msg)})
			return
		}
	}
	r.mu.Lock()
	about := r.about
	r.mu.Unlock()
	if about != "" && level <= levelWarn {
		r.report(variableError{about, errors.New(msg)})
	}
}

// Error implements [logr.LogSink]. The values may be secrets, and are not said: the
// variable that has them is.
func (r *reporter) Error(err error, msg string, kv ...any) {
	var escape url.EscapeError
	if errors.As(err, &escape) {
		err = errors.New("invalid escape") // without what was to be escaped
	}
	err = fmt.Errorf("%s: %w", msg, err)
	for i := 1; i < len(kv); i += 2 {
		if name := holder(fmt.Sprint(kv[i])); name != "" {
			r.report(variableError{name, err})
			return
		}
	}
	r.Handle(err)
}

// WithValues implements [logr.LogSink].
func (r *reporter) WithValues(...any) logr.LogSink { return r }

// WithName implements [logr.LogSink].
func (r *reporter) WithName(string) logr.LogSink { return r }

// holder is the exporters' variable that has s in its value.
func holder(s string) string {
	if s == "" {
		return ""
	}
	for _, entry := range os.Environ() {
		name, v, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, variable("", "")) && strings.Contains(v, s) {
			return name
		}
	}
	return ""
}
