package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	eventstypes "github.com/containerd/containerd/api/events"
	eventsv1 "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"go.opentelemetry.io/otel"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

// eventsServer is containerd's events service on a socket, which can be stopped
// and started again.
type eventsServer struct {
	t       *testing.T
	socket  string
	forward func(ctx context.Context, id string) error // guarded by mu; what becomes of an event
	server  *ttrpc.Server

	mu       sync.Mutex
	got      []string      // guarded by mu; container ids, in order of arrival
	topics   []string      // guarded by mu
	received chan struct{} // a token for each event that was taken
}

func newEventsServer(t *testing.T) *eventsServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "events") // short enough for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	s := &eventsServer{t: t, socket: filepath.Join(dir, "s"), received: make(chan struct{}, 2*maxEvents)}
	t.Cleanup(func() { s.stop(); os.RemoveAll(dir) })
	return s
}

func (s *eventsServer) start() {
	s.t.Helper()
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.server, err = ttrpc.NewServer(); err != nil {
		s.t.Fatal(err)
	}
	eventsv1.RegisterTTRPCEventsService(s.server, s)
	go s.server.Serve(context.Background(), l)
}

func (s *eventsServer) stop() {
	if s.server != nil {
		s.server.Close()
		s.server = nil
	}
}

// Forward implements the service.
func (s *eventsServer) Forward(ctx context.Context, r *eventsv1.ForwardRequest) (*ptypes.Empty, error) {
	v, err := typeurl.UnmarshalAny(r.Envelope.Event)
	if err != nil {
		return nil, err
	}
	id := v.(*eventstypes.TaskStart).ContainerID
	s.mu.Lock()
	forward := s.forward
	s.mu.Unlock()
	if forward != nil {
		if err := forward(ctx, id); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, id)
	s.topics = append(s.topics, r.Envelope.Namespace+r.Envelope.Topic)
	s.received <- struct{}{}
	return empty, nil
}

// distinct are the events in order: one whose answer was lost comes twice.
func (s *eventsServer) distinct() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Compact(slices.Clone(s.got))
}

func newTestOutbox(t *testing.T, s *eventsServer) *outbox {
	t.Helper()
	o, err := newOutbox(s.socket, "ns")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// sendNumbered sends the events from to to, exclusive, and returns their ids.
func sendNumbered(o *outbox, from, to int) (ids []string) {
	for i := from; i < to; i++ {
		ids = append(ids, fmt.Sprint(i))
		o.send(context.Background(), taskStart(fmt.Sprint(i), i))
	}
	return ids
}

func TestEventsArriveInTheOrderTheyWereSent(t *testing.T) {
	s := newEventsServer(t)
	s.start()
	o := newTestOutbox(t, s)
	want := sendNumbered(o, 0, 50)
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if got := s.distinct(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := s.topics[0], "ns/tasks/start"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestEventsKeepTheirOrderOverAServerThatFails(t *testing.T) {
	s := newEventsServer(t)
	var failures int
	s.forward = func(_ context.Context, id string) error {
		if id == "2" && failures < 2 {
			failures++
			return errors.New("not now")
		}
		return nil
	}
	s.start()
	o := newTestOutbox(t, s)
	want := sendNumbered(o, 0, 6)
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if got := s.distinct(); !slices.Equal(got, want) || failures != 2 {
		t.Errorf("got %v after %d failures, want %v after 2", got, failures, want)
	}
}

func TestEventsKeepTheirOrderOverARestartOfTheServer(t *testing.T) {
	s := newEventsServer(t)
	s.start()
	o := newTestOutbox(t, s)
	want := sendNumbered(o, 0, 3)
	for range 3 {
		<-s.received
	}
	s.stop()
	want = append(want, sendNumbered(o, 3, 6)...)
	s.start()
	want = append(want, sendNumbered(o, 6, 9)...)
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if got := s.distinct(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAServerThatNeverAnswersDoesNotHoldUpTheShutdown(t *testing.T) {
	t.Parallel()
	s := newEventsServer(t)
	s.forward = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	s.start()
	o := newTestOutbox(t, s)
	sendNumbered(o, 0, 3)
	if err := o.close(); err == nil {
		t.Error("3 events were lost without an error")
	}
	select {
	case <-o.done:
	default:
		t.Error("the sender has not ended")
	}
}

func TestAnOutboxWithoutEventsNeedsNoServer(t *testing.T) {
	o := newTestOutbox(t, newEventsServer(t))
	if err := o.close(); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestTheOldestOfTooManyEventsGo(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	o := &outbox{namespace: "ns", changed: make(chan struct{}, 1)} // nobody sends
	sendNumbered(o, 0, maxEvents+2)
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	dropped := int64(0)
	for _, s := range rm.ScopeMetrics {
		for _, m := range s.Metrics {
			if m.Name == telemetry.EventDropped {
				dropped = m.Data.(metricdata.Sum[int64]).DataPoints[0].Value
			}
		}
	}
	if dropped != 2 {
		t.Errorf("%d events are counted, want 2", dropped)
	}
	if got, want := len(o.queue), maxEvents; got != want {
		t.Fatalf("got %d events, want %d", got, want)
	}
	for i, want := range map[int]string{0: "2", maxEvents - 1: fmt.Sprint(maxEvents + 1)} {
		v, err := typeurl.UnmarshalAny(o.queue[i].Event)
		if err != nil {
			t.Fatal(err)
		}
		if got := v.(*eventstypes.TaskStart).ContainerID; got != want {
			t.Errorf("event %d: got %s, want %s", i, got, want)
		}
	}
}

func TestSendingIsSafeFromManyGoroutines(t *testing.T) {
	s := newEventsServer(t)
	s.start()
	o := newTestOutbox(t, s)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { sendNumbered(o, 10*i, 10*i+10) })
	}
	wg.Wait()
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if got, want := len(s.distinct()), 80; got != want {
		t.Errorf("got %d events, want %d", got, want)
	}
}
