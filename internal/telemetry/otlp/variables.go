package otlp

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Variables are OTEL_ variables that the configuration of the host sets. They go
// before those of the environment.
type Variables map[string]string

// known are the variables that something here reads.
var known = `^OTEL_(` +
	`EXPORTER_OTLP_((TRACES|METRICS)_)?(ENDPOINT|PROTOCOL|HEADERS|TIMEOUT|COMPRESSION|INSECURE|CERTIFICATE|CLIENT_KEY|CLIENT_CERTIFICATE)|` +
	`EXPORTER_OTLP_METRICS_(TEMPORALITY_PREFERENCE|DEFAULT_HISTOGRAM_AGGREGATION)|` +
	`SDK_DISABLED|SERVICE_NAME|RESOURCE_ATTRIBUTES|PROPAGATORS|(TRACES|METRICS)_EXPORTER|TRACES_SAMPLER(_ARG)?|` +
	`BSP_(SCHEDULE_DELAY|EXPORT_TIMEOUT|MAX_QUEUE_SIZE|MAX_EXPORT_BATCH_SIZE)|METRIC_EXPORT_(INTERVAL|TIMEOUT)|METRICS_EXEMPLAR_FILTER|` +
	`(SPAN_)?ATTRIBUTE_(COUNT|VALUE_LENGTH)_LIMIT|SPAN_(EVENT|LINK)_COUNT_LIMIT|(EVENT|LINK)_ATTRIBUTE_COUNT_LIMIT|GO_X_.*` +
	`)$`

// NewVariables reads the table [telemetry] of the host's file: the key k stands for
// OTEL_K. What is wrong with the table is an error; keys for variables that
// nothing reads are named.
func NewVariables(table any) (_ Variables, unknown []string, err error) {
	if table == nil {
		return nil, nil, nil
	}
	keys, ok := table.(map[string]any)
	if !ok {
		return nil, nil, fmt.Errorf("telemetry: not a table")
	}
	v := Variables{}
	reads := regexp.MustCompile(known)
	for key, val := range keys {
		name := "OTEL_" + strings.ToUpper(key)
		if strings.ContainsAny(name, "=\x00") {
			return nil, nil, fmt.Errorf("telemetry.%q: no name of a variable", key)
		}
		var s string
		switch val := val.(type) {
		case string:
			s = val
		case bool:
			s = strconv.FormatBool(val)
		case int64:
			s = strconv.FormatInt(val, 10)
		case float64:
			s = strconv.FormatFloat(val, 'f', -1, 64)
		default:
			return nil, nil, fmt.Errorf("telemetry.%s: neither a string nor a number nor a boolean", key)
		}
		if strings.ContainsRune(s, 0) {
			return nil, nil, fmt.Errorf("telemetry.%s: it has a NUL", key)
		}
		if !reads.MatchString(name) {
			unknown = append(unknown, "telemetry."+key)
		}
		v[name] = s
	}
	slices.Sort(unknown)
	return v, unknown, nil
}

// Use calls f in an environment where the variables are set, and nowhere else:
// what of them is secret stays out of the environment of every child. The caller
// sees to it that nothing else starts one, or reads the environment, meanwhile.
func (v Variables) Use(f func()) {
	change := map[string]string{} // empty for those that are not to be there
	if value("OTEL_SERVICE_NAME") == "containerd" {
		change["OTEL_SERVICE_NAME"] = "" // is the name of the one that started the shim
	}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if v.hide(name) {
			change[name] = ""
		}
	}
	maps.Copy(change, v)
	defer setenv(change)()
	f()
}

// hide tells whether a variable of the environment is not to be heeded: it is
// about where containerd's own telemetry goes, its secrets included, when the host's
// file says where that of the shim goes; or it is about one signal, and the file
// says the same of all signals.
func (v Variables) hide(name string) bool {
	key, ok := strings.CutPrefix(name, variable("", ""))
	if !ok {
		return false
	}
	if v[variable("", "ENDPOINT")] != "" || v[variable(traces, "ENDPOINT")] != "" {
		return true
	}
	for _, signal := range []string{traces, metrics} {
		if rest, ok := strings.CutPrefix(key, signal+"_"); ok {
			_, ok = v[variable("", rest)]
			return ok
		}
	}
	return false
}

// setenv changes the environment, and returns what changes it back. An empty value
// stands for no variable, as OpenTelemetry has it.
func setenv(change map[string]string) (restore func()) {
	var undo []func() error
	for name, value := range change {
		if before, ok := os.LookupEnv(name); ok {
			undo = append(undo, func() error { return os.Setenv(name, before) })
		} else {
			undo = append(undo, func() error { return os.Unsetenv(name) })
		}
		_ = os.Setenv(name, value) // fails for what is no variable
	}
	return func() {
		for _, f := range undo {
			_ = f() // has been so before
		}
	}
}
