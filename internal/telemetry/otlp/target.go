package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/regular"
)

// Signals, as variables name them.
const (
	traces  = "TRACES"
	metrics = "METRICS"
)

// Protocols, as variables name them.
const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
)

// maxPEM bounds a file for TLS, bytes.
const maxPEM = 1 << 20

// A target is where a signal goes, and how.
type target struct {
	signal   string
	protocol string
	insecure bool   // without TLS
	variable string // the one that names the endpoint
	endpoint string // as the exporters understand it

	// load reads the files for TLS, unless it has; set once there is an exporter.
	load func() error
}

// A variableError says what is wrong with a variable. Its text has nothing of
// the value, which may hold a password.
type variableError struct {
	name   string
	reason error
}

func (e variableError) Error() string { return e.name + ": " + e.reason.Error() }
func (e variableError) Unwrap() error { return e.reason }

// newTarget is where the environment says that a signal goes; nil when it is
// not to be sent.
//
// See https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
func newTarget(signal string) (*target, error) {
	name, endpoint := lookup(signal, "ENDPOINT")
	if endpoint == "" || strings.EqualFold(value("OTEL_SDK_DISABLED"), "true") {
		return nil, nil
	}
	switch v := value("OTEL_" + signal + "_EXPORTER"); v {
	case "", "otlp":
	case "none":
		return nil, nil
	default:
		return nil, variableError{"OTEL_" + signal + "_EXPORTER", fmt.Errorf("%q is not one that the shim has: otlp or none", v)}
	}
	t := &target{signal: signal, variable: name}
	u, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, variableError{name, err}
	}
	variable, protocol := lookup(signal, "PROTOCOL")
	switch protocol {
	case protocolGRPC, protocolHTTP:
		t.protocol = protocol
	case "":
		t.protocol = protocolHTTP
		if u.Scheme == "grpc" || u.Port() == "4317" {
			t.protocol = protocolGRPC
		}
	default:
		return nil, variableError{variable, fmt.Errorf("%q is not one that the shim has: %s or %s", protocol, protocolGRPC, protocolHTTP)}
	}
	if t.protocol == protocolHTTP && u.Scheme != "http" && u.Scheme != "https" {
		return nil, variableError{name, errors.New("for http/protobuf it must be of the form http://host:port or https://host:port")}
	}
	switch u.Scheme {
	case "http", "unix":
		t.insecure = true
	case "grpc", "":
		// The variable is about these only. What says grpc:// means it plain.
		_, v := lookup(signal, "INSECURE")
		t.insecure = strings.EqualFold(v, "true") || u.Scheme == "grpc" && v == ""
		u.Scheme = "https"
		if t.insecure {
			u.Scheme = "http"
		}
	}
	t.endpoint = u.String()
	return t, nil
}

// parseEndpoint reads a URL or, as gRPC has it, host:port. Its errors have nothing
// of what may be a password.
func parseEndpoint(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") && !strings.HasPrefix(s, "unix:") {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return nil, errors.New("neither a URL nor host:port")
		}
		s = "//" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("not a URL") // the reason may quote a part of it
	}
	switch u.Scheme = strings.ToLower(u.Scheme); u.Scheme {
	case "", "http", "https", "grpc":
		if u.Hostname() == "" {
			return nil, errors.New("it has no host")
		}
	case "unix":
		if u.Path == "" && u.Opaque == "" {
			return nil, errors.New("it has no path")
		}
	default:
		return nil, fmt.Errorf("unknown scheme %q", u.Scheme)
	}
	u.User = nil
	return u, nil
}

// value is that of a variable, as the exporters read it.
func value(name string) string { return strings.TrimSpace(os.Getenv(name)) }

// lookup is the value of an exporter's variable, that of the signal going before
// that of all signals, and the name of the variable it is from.
func lookup(signal, key string) (name, v string) {
	for _, name := range []string{variable(signal, key), variable("", key)} {
		if v := value(name); v != "" {
			return name, v
		}
	}
	return "", ""
}

// variable is the name of an exporter's variable, of one signal or of all.
func variable(signal, key string) string {
	if signal != "" {
		key = signal + "_" + key
	}
	return "OTEL_EXPORTER_OTLP_" + key
}

// exporting calls f, which makes the exporter for t, in an environment that leads
// it there. The exporter is to have the configuration for TLS, where there is one,
// and not to be used before t.load has returned nil.
//
// The exporters' own reading of the endpoint does not know host:port nor grpc://,
// and takes the variable for insecure connections to go before a scheme. Files for
// TLS it reads at once, even a FIFO, and goes on without those that it cannot read.
func (r *reporter) exporting(t *target, f func(*tls.Config) error) (err error) {
	if name, v := lookup(t.signal, "COMPRESSION"); v != "" && v != "gzip" && v != "none" {
		r.report(variableError{name, fmt.Errorf("%q is not one that the shim has: gzip or none", v)})
	}
	var config *tls.Config
	config, t.load = t.tls()
	change := map[string]string{}
	for _, key := range []string{"ENDPOINT", "PROTOCOL", "INSECURE", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"} {
		change[variable("", key)], change[variable(t.signal, key)] = "", ""
	}
	change[t.variable] = t.endpoint
	defer setenv(change)()
	r.reading(variable("", "*"), func() { err = f(config) })
	return err
}

// tls is what the variables for TLS say, nil when they say nothing. It is complete
// once load has returned nil, which may be tried until it does.
func (t *target) tls() (config *tls.Config, load func() error) {
	rootsName, roots := lookup(t.signal, "CERTIFICATE")
	certName, cert := lookup(t.signal, "CLIENT_CERTIFICATE")
	keyName, key := lookup(t.signal, "CLIENT_KEY")
	if t.insecure || roots == "" && cert == "" && key == "" {
		return nil, func() error { return nil }
	}
	config = &tls.Config{MinVersion: tls.VersionTLS12}
	var pair tls.Certificate
	if roots != "" {
		config.RootCAs = x509.NewCertPool() // the exporters copy the pointer
	}
	if cert != "" || key != "" {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	var mu sync.Mutex
	loaded := false // guarded by mu, like what it is about
	return config, func() (err error) {
		mu.Lock()
		defer mu.Unlock()
		if loaded {
			return nil
		}
		defer func() { loaded = err == nil }()
		if roots != "" {
			data, err := regular.ReadFile(roots, maxPEM)
			if err == nil && !config.RootCAs.AppendCertsFromPEM(data) {
				err = fmt.Errorf("%s: no certificate in PEM", roots)
			}
			if err != nil {
				return variableError{rootsName, err}
			}
		}
		switch {
		case cert == "" && key == "":
			return nil
		case cert == "":
			return variableError{keyName, errors.New("a key without a certificate")}
		case key == "":
			return variableError{certName, errors.New("a certificate without a key")}
		}
		certPEM, err := regular.ReadFile(cert, maxPEM)
		if err != nil {
			return variableError{certName, err}
		}
		keyPEM, err := regular.ReadFile(key, maxPEM)
		if err != nil {
			return variableError{keyName, err}
		}
		if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
			return variableError{certName + ", " + keyName, err}
		}
		return nil
	}
}
