//go:build attack

package instance

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// Attacks on the shim by way of the relay's pipe, which the process of a traced
// container has.
func init() {
	attacks["relay garbage"] = relayed("\x00\xff{\n}\n[[[[\nnull\n{\"name\":1}\n" + strings.Repeat("{", relay.MaxFrame) + "\n")
	attacks["relay torn"] = relayed(`{"name":"module.compile","error":"` + strings.Repeat("x", 1<<20) + "\"}\n")
	attacks["relay lies"] = relayed(`{"name":"task.delete","start":1,"end":2}` + "\n" +
		`{"name":"module.compile","parent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","start":1,"end":9223372036854775807,` +
		`"attrs":{"container.id":"another","wasm.module.size":-1},"error":"` + "\xff\xfe" + `","errorType":"` + strings.Repeat("x", 2000) + `"}` + "\n")
	attacks["relay flood"] = relayed(strings.Repeat(strings.Repeat("x", 1000)+"\n", 64<<10))
	attacks["relay spans"] = relayed(strings.Repeat(`{"name":"module.load","start":1,"end":2}`+"\n", 1<<20))
}

// relayed writes text to the relay. It has reached when all of more than a megabyte
// was taken.
func relayed(text string) func(target) []try {
	return func(target) []try {
		for rest := []byte(text); len(rest) > 0; {
			n, err := unix.Write(SpansFD, rest)
			if errors.Is(err, unix.EAGAIN) {
				time.Sleep(time.Millisecond) // the recorder has made it one that does not block
				continue
			}
			if err != nil {
				return []try{{Call: fmt.Sprintf("write %d bytes", len(text)), Error: err.Error()}}
			}
			rest = rest[n:]
		}
		return []try{{Call: fmt.Sprintf("write %d bytes", len(text)), Reached: len(text) > 1<<20}}
	}
}
