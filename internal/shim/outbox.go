package shim

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	eventsv1 "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/containerd/v2/pkg/ttrpcutil"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry"
)

const (
	// maxEvents bounds what is kept while containerd is away; the oldest go.
	maxEvents = 4096
	// flushEvents bounds how long a shutdown waits for containerd to take the rest.
	flushEvents = 2 * time.Second
)

// An outbox hands task events to containerd one after the other, in the order
// they were sent, and tries again for as long as containerd is away: its restart
// loses no exit.
//
// The publisher of containerd's shim package does neither: an event that failed
// is put behind later ones, and dropped after the fifth try.
type outbox struct {
	client    *ttrpcutil.Client
	address   string
	namespace string

	mu      sync.Mutex
	queue   []*queued     // guarded by mu
	closed  bool          // guarded by mu
	changed chan struct{} // holds a token when queue or closed has changed
	stop    context.CancelFunc
	done    chan struct{} // closed when the sender has ended
}

// A queued event, with the logger of what it is about.
type queued struct {
	*types.Envelope
	log *log.Entry
}

// newOutbox sends to the events service of containerd at the given ttrpc
// address. It connects when there is something to send.
func newOutbox(address, namespace string) (*outbox, error) {
	client, err := ttrpcutil.NewClient(address)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	ctx, stop := context.WithCancel(namespaces.WithNamespace(context.Background(), namespace))
	o := &outbox{
		client: client, address: address, namespace: namespace,
		changed: make(chan struct{}, 1), stop: stop, done: make(chan struct{}),
	}
	go o.run(ctx)
	return o, nil
}

// send queues an event. It never blocks. Of ctx it takes the logger.
func (o *outbox) send(ctx context.Context, event any) {
	e, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		log.G(ctx).WithError(err).Errorf("event %T lost", event)
		telemetry.EventLost()
		return
	}
	o.mu.Lock()
	if len(o.queue) == maxEvents {
		o.queue[0].log.Errorf("event %s lost: containerd has not taken %d events", o.queue[0].Topic, maxEvents)
		o.queue = o.queue[1:]
		telemetry.EventLost()
	}
	o.queue = append(o.queue, &queued{&types.Envelope{
		Timestamp: protobuf.ToTimestamp(time.Now()),
		Namespace: o.namespace,
		Topic:     runtime.GetTopic(event),
		Event:     e,
	}, log.G(ctx)})
	o.mu.Unlock()
	o.wake()
}

func (o *outbox) wake() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// close sends what is queued, for 2 s at most, and ends the sender.
func (o *outbox) close() error {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.wake()
	select {
	case <-o.done:
	case <-time.After(flushEvents):
		o.stop()
		<-o.done
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.queue); n > 0 {
		return fmt.Errorf("%d events lost: containerd did not take them", n)
	}
	return nil
}

func (o *outbox) run(ctx context.Context) {
	defer close(o.done)
	defer o.client.Close()
	const firstPause, longestPause = 50 * time.Millisecond, time.Second
	pause := firstPause
	for {
		o.mu.Lock()
		var next *queued
		if len(o.queue) > 0 {
			next = o.queue[0]
		}
		closed := o.closed
		o.mu.Unlock()
		if next == nil {
			if closed {
				return
			}
			select {
			case <-o.changed:
			case <-ctx.Done():
				return
			}
			continue
		}
		if err := o.forward(ctx, next.Envelope); err != nil {
			next.log.WithError(err).Warnf("event %s: will try again", next.Topic)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, longestPause)
			if o.listening() == nil {
				if err := o.client.Reconnect(); err != nil {
					log.L.WithError(err).Debug("events: reconnect")
				}
			}
			continue
		}
		pause = firstPause
		o.mu.Lock()
		if len(o.queue) > 0 && o.queue[0] == next { // else it was the oldest of too many
			o.queue = o.queue[1:]
		}
		o.mu.Unlock()
	}
}

// listening tells whether there is a socket to connect to. The client would wait
// for one, 5 s at a time, whatever its context says.
func (o *outbox) listening() error {
	_, err := os.Stat(strings.TrimPrefix(o.address, "unix://"))
	return err
}

func (o *outbox) forward(ctx context.Context, e *types.Envelope) error {
	if err := o.listening(); err != nil {
		return err
	}
	service, err := o.client.EventsService()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = service.Forward(ctx, &eventsv1.ForwardRequest{Envelope: e})
	return err
}
