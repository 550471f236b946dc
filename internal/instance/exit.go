package instance

import (
	"errors"

	"github.com/tetratelabs/wazero/sys"
)

// trapStatus is the status of a guest that trapped: 128 + SIGABRT, what a shell
// reports of a program that called abort(3).
const trapStatus = 134

// exitStatus maps what came of calling the guest to the status the instance
// process exits with, 0 through 255.
//
//   - nil: 0
//   - *sys.ExitError: the code given to proc_exit. wait(2) keeps 8 bits of it; a
//     larger one becomes 255, since 256 must not look like success.
//   - anything else is a trap: 134
//
// See https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md#proc_exit.
func exitStatus(err error) int {
	var exit *sys.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(min(exit.ExitCode(), 255))
	default:
		return trapStatus
	}
}
