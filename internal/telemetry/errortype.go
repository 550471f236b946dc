package telemetry

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"golang.org/x/sys/unix"
)

// statusCodes are the names that gRPC has for the classes of errors on its wire,
// which is ttrpc's as well, see package errgrpc.
//
// See https://grpc.io/docs/guides/status-codes/.
var statusCodes = map[error]string{
	context.Canceled:              "CANCELLED",
	context.DeadlineExceeded:      "DEADLINE_EXCEEDED",
	errdefs.ErrUnknown:            "UNKNOWN",
	errdefs.ErrInvalidArgument:    "INVALID_ARGUMENT",
	errdefs.ErrNotFound:           "NOT_FOUND",
	errdefs.ErrAlreadyExists:      "ALREADY_EXISTS",
	errdefs.ErrPermissionDenied:   "PERMISSION_DENIED",
	errdefs.ErrResourceExhausted:  "RESOURCE_EXHAUSTED",
	errdefs.ErrFailedPrecondition: "FAILED_PRECONDITION",
	errdefs.ErrConflict:           "FAILED_PRECONDITION",
	errdefs.ErrNotModified:        "FAILED_PRECONDITION",
	errdefs.ErrAborted:            "ABORTED",
	errdefs.ErrOutOfRange:         "OUT_OF_RANGE",
	errdefs.ErrNotImplemented:     "UNIMPLEMENTED",
	errdefs.ErrInternal:           "INTERNAL",
	errdefs.ErrUnavailable:        "UNAVAILABLE",
	errdefs.ErrDataLoss:           "DATA_LOSS",
	errdefs.ErrUnauthenticated:    "UNAUTHENTICATED",
}

// StatusCode is the name of the status that err is on the wire; "OK" for nil.
func StatusCode(err error) string {
	if err == nil {
		return "OK"
	}
	return statusCodes[errdefs.Resolve(err)]
}

// An Error is one that says what kind of error it is.
type Error struct{ Type, Text string }

func (e *Error) Error() string { return e.Text }

// ErrorType is what package semconv asks for.
func (e *Error) ErrorType() string { return e.Type }

// ErrPanic is what a span says of an operation that never came to its result.
var ErrPanic = &Error{"panic", "panic"}

// ErrorTypeOf names what kind of error err is, of few: the status it is on the wire;
// the name of the kernel's error that it wraps; what it says itself with a method
// ErrorType; or a type of Go.
func ErrorTypeOf(err error) string {
	if class := errdefs.Resolve(err); !errors.Is(class, errdefs.ErrUnknown) {
		return statusCodes[class]
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
	}
	return semconv.ErrorType(err).Value.AsString()
}
