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
	attacks["guest garbage"] = floods("\x00\xff{\n}\n[[[[\nnull\n{\"call\":1}\n" + strings.Repeat("{", relay.MaxFrame) + "\n")
	attacks["guest lies"] = floods(`{"call":"enter","depth":1,"at":1,"text":"task.delete","trace":"4bf92f3577b34da6a3ce929d0e0e4736","dropped":-5}` + "\n" +
		`{"call":"tags","depth":1,"text":"container.id:another,k8s.pod.name:another,process.pid:1,mine:true"}` + "\n" +
		`{"call":"log","depth":64,"level":4294967295,"text":"\ud800"}` + "\n" + `{"call":"exit","depth":-1,"at":9223372036854775807}` + "\n")
	attacks["guest depth"] = floods(depths())
	attacks["guest metrics"] = floods(names())
	attacks["relay spans"] = relayed(strings.Repeat(`{"name":"module.load","start":1,"end":2}`+"\n", 1<<20))
}

// depths are spans in each other, with as much said of each as a line can have.
func depths() string {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, `{"call":"enter","depth":%d,"text":"deep"}`+"\n", i%relay.MaxDepth+1)
		for j := range 8 {
			fmt.Fprintf(&b, `{"call":"tags","depth":%d,"text":"%d:%s"}`+"\n", i%relay.MaxDepth+1, j, strings.Repeat("x", 3000))
		}
	}
	return b.String()
}

// names are metrics, more than anybody has room for.
func names() string {
	var b strings.Builder
	for i := range 1 << 16 {
		fmt.Fprintf(&b, `{"call":"metric","level":1,"text":"m%d:1|c|#t:%d"}`+"\n", i, i)
	}
	return b.String()
}

// floods writes text to the pipe of what a guest sends, again and again for two
// seconds. It has reached when more was taken than a shim with nothing else to do has
// time for.
func floods(text string) func(target) []try {
	return func(target) []try {
		taken := 0
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
			for rest := []byte(text); len(rest) > 0 && time.Now().Before(end); {
				n, err := unix.Write(GuestFD, rest)
				if errors.Is(err, unix.EAGAIN) {
					time.Sleep(time.Millisecond)
					continue
				}
				if err != nil {
					return []try{{Call: "write to the guest's pipe", Error: err.Error()}}
				}
				taken += n
				rest = rest[n:]
			}
		}
		return []try{{Call: fmt.Sprintf("write to the guest's pipe, %d bytes taken", taken), Reached: taken > 2<<20 || taken == 0}}
	}
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
