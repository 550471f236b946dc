//go:build attack

package instance

import "golang.org/x/sys/unix"

// attackForkOld are the calls that later architectures are without. Of vfork(2)
// the child would run on this stack: it is tried where it must fail.
func attackForkOld() []try {
	return []try{tried("fork", fork(unix.SYS_FORK))}
}
