// Package jaeger runs a real Jaeger that keeps traces in memory, and asks it for
// them, for the tests and the picture of the documentation. Jaeger is an
// OpenTelemetry collector, and can be run as that, too.
package jaeger

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

//go:embed config.yaml
var config string

// A Jaeger is a running one.
type Jaeger struct {
	GRPC, HTTP string // where it takes OTLP, host:port
	Query      string // where it answers, host:port; of a collector empty
	cmd        *exec.Cmd
	done       chan struct{} // closed when its log has ended
}

// Start runs the program at path, on loopback ports of its own, until Close.
func Start(ctx context.Context, path string) (*Jaeger, error) {
	return start(ctx, exec.Command(path, "--config=yaml:"+config))
}

// StartCollector runs the program at path as what it is made of, an OpenTelemetry
// collector, with the given configuration: its receiver and its exporter have to be
// called otlp. It takes what comes on ports of its own, and its exporter sends it to
// the address to.
func StartCollector(ctx context.Context, path, configuration, to string) (*Jaeger, error) {
	return start(ctx, exec.Command(path, "--config=yaml:"+configuration,
		"--set=receivers.otlp.protocols.grpc.endpoint=127.0.0.1:0", "--set=receivers.otlp.protocols.http.endpoint=127.0.0.1:0",
		"--set=exporters.otlp.endpoint="+to, "--set=service.telemetry.metrics.level=none", "--set=service.telemetry.logs.encoding=json"))
}

func start(ctx context.Context, cmd *exec.Cmd) (_ *Jaeger, err error) {
	j := &Jaeger{cmd: cmd, done: make(chan struct{})}
	logs, err := j.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := j.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Jaeger: %w", err)
	}
	ready := make(chan error, 1)
	go func() {
		defer close(j.done)
		ready <- j.addresses(logs)
		_, _ = io.Copy(io.Discard, logs) // until it ends
	}()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = fmt.Errorf("start Jaeger: %w", ctx.Err())
	}
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// addresses reads its log until it is ready, and learns from it where it listens.
func (j *Jaeger) addresses(logs io.Reader) error {
	var tail []string
	lines := bufio.NewScanner(logs)
	for lines.Scan() {
		tail = append(tail, lines.Text())
		var line struct {
			Msg, Endpoint string
			Component     string `json:"otelcol.component.id"`
			Addr          string `json:"http_addr"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue // the version is not JSON
		}
		switch {
		case line.Msg == "Query server started":
			j.Query = line.Addr
		case line.Msg == "Starting GRPC server" && line.Component == "otlp":
			j.GRPC = line.Endpoint
		case line.Msg == "Starting HTTP server" && line.Component == "otlp":
			j.HTTP = line.Endpoint
		case strings.HasPrefix(line.Msg, "Everything is ready"):
			if j.GRPC == "" || j.HTTP == "" {
				return fmt.Errorf("Jaeger does not say where it listens:\n%s", strings.Join(tail, "\n"))
			}
			return nil
		}
	}
	return fmt.Errorf("Jaeger has ended: %w\n%s", errors.Join(lines.Err(), io.EOF), strings.Join(tail, "\n"))
}

// Close ends it.
func (j *Jaeger) Close() error {
	if err := j.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end Jaeger: %w", err)
	}
	<-j.done
	if err := j.cmd.Wait(); err != nil {
		return fmt.Errorf("end Jaeger: %w", err)
	}
	return nil
}

// Services are the names of those that it has spans of.
func (j *Jaeger) Services(ctx context.Context) (names []string, err error) {
	data, err := j.get(ctx, "/api/services", nil)
	if err != nil {
		return nil, err
	}
	return names, json.Unmarshal(data, &names)
}

// Find are the traces that have a span of a service with the given tags, with all
// of their spans, each trace as [Jaeger.Trace] returns it.
func (j *Jaeger) Find(ctx context.Context, service string, tags map[string]string) ([]json.RawMessage, error) {
	query, err := json.Marshal(tags)
	if err != nil {
		return nil, err
	}
	data, err := j.get(ctx, "/api/traces", url.Values{"service": {service}, "tags": {string(query)}, "limit": {"100"}, "lookback": {"1h"}})
	if err != nil {
		return nil, err
	}
	var traces []json.RawMessage
	return traces, json.Unmarshal(data, &traces)
}

// Trace is one trace in the JSON of Jaeger's own user interface; [Spans] reads it.
func (j *Jaeger) Trace(ctx context.Context, id string) (json.RawMessage, error) {
	data, err := j.get(ctx, "/api/traces/"+id, nil)
	if err != nil {
		return nil, err
	}
	var traces []json.RawMessage
	if err := json.Unmarshal(data, &traces); err != nil {
		return nil, err
	}
	if len(traces) != 1 {
		return nil, fmt.Errorf("Jaeger has %d traces with the id %s", len(traces), id)
	}
	return traces[0], nil
}

// get asks the HTTP interface of the query service, and returns the data of its answer.
func (j *Jaeger) get(ctx context.Context, path string, query url.Values) (json.RawMessage, error) {
	target := url.URL{Scheme: "http", Host: j.Query, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", &target, resp.Status, body)
	}
	var answer struct{ Data json.RawMessage }
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", &target, err)
	}
	return answer.Data, nil
}

// Spans reads a trace as Jaeger writes it, with times to a microsecond. What it calls
// tags are attributes; the status of a span, and that it failed, are among them, and
// are taken from there. Its logs are events.
func Spans(trace []byte) ([]collector.Span, error) {
	var t struct {
		Spans []struct {
			TraceID, SpanID, OperationName, ProcessID string
			StartTime, Duration                       int64 // µs
			References                                []struct{ RefType, TraceID, SpanID string }
			Tags                                      []tag
			Logs                                      []struct {
				Timestamp int64 // µs
				Fields    []tag
			}
		}
		Processes map[string]struct {
			ServiceName string
			Tags        []tag
		}
	}
	if err := json.Unmarshal(trace, &t); err != nil {
		return nil, fmt.Errorf("a trace of Jaeger's: %w", err)
	}
	var spans []collector.Span
	for _, s := range t.Spans {
		span := collector.Span{
			Service: t.Processes[s.ProcessID].ServiceName, Name: s.OperationName, TraceID: s.TraceID, ID: s.SpanID,
			Start: time.UnixMicro(s.StartTime), End: time.UnixMicro(s.StartTime + s.Duration),
			Attrs: attributes(s.Tags), Resource: attributes(t.Processes[s.ProcessID].Tags),
		}
		for _, r := range s.References {
			if r.RefType == "CHILD_OF" {
				span.Parent = r.SpanID
			} else {
				span.Links, span.LinkTrace = append(span.Links, r.SpanID), append(span.LinkTrace, r.TraceID)
			}
		}
		for _, l := range s.Logs {
			fields := attributes(l.Fields)
			e := collector.Event{Name: fields["event"], At: time.UnixMicro(l.Timestamp), Attrs: fields}
			delete(fields, "event")
			span.Events = append(span.Events, e)
		}
		span.Failed, span.Status = span.Attrs["error"] == "true", span.Attrs["otel.status_description"]
		for _, key := range []string{"error", "otel.status_code", "otel.status_description"} {
			delete(span.Attrs, key)
		}
		spans = append(spans, span)
	}
	return spans, nil
}

func attributes(tags []tag) map[string]string {
	m := make(map[string]string, len(tags))
	for _, t := range tags {
		m[t.Key] = string(t.Value)
	}
	return m
}

// A tag is a typed value; numbers are kept as they are written.
type tag struct {
	Key   string
	Value value
}

type value string

// UnmarshalJSON takes any value.
func (v *value) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) == nil {
		*v = value(s)
	} else {
		*v = value(data)
	}
	return nil
}
