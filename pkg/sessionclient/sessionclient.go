// Package sessionclient talks to the session store from Go, and returns errors
// that errors.Is can tell apart.
package sessionclient

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// What a call can fail with. The gRPC status stays reachable through
// status.FromError.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("revision conflict")
	ErrEnded       = errors.New("session is over")
	ErrUnavailable = errors.New("store unavailable")
	ErrExhausted   = errors.New("limit reached")
	ErrInvalid     = errors.New("invalid argument")
)

// FieldError is an ErrInvalid that knows which field is to blame.
type FieldError struct {
	// Field is the JSON path in the request.
	Field string
	// Description says what came and what was expected.
	Description string
}

// Error names the field.
func (e *FieldError) Error() string { return e.Field + ": " + e.Description }

// Is makes a FieldError an ErrInvalid.
func (e *FieldError) Is(target error) bool { return target == ErrInvalid }

// statusError joins what a call failed with and the status it came as.
type statusError struct {
	err    error
	status *status.Status
}

func (e *statusError) Error() string              { return fmt.Sprintf("%v: %s", e.err, e.status.Message()) }
func (e *statusError) Unwrap() error              { return e.err }
func (e *statusError) GRPCStatus() *status.Status { return e.status }

var byReason = map[string]error{
	rpc.ReasonSessionNotFound:  ErrNotFound,
	rpc.ReasonPolicyNotFound:   ErrNotFound,
	rpc.ReasonNotFound:         ErrNotFound,
	rpc.ReasonConflict:         ErrConflict,
	rpc.ReasonSessionOver:      ErrEnded,
	rpc.ReasonStoreUnavailable: ErrUnavailable,
	rpc.ReasonLimitReached:     ErrExhausted,
}

var byCode = map[codes.Code]error{
	codes.NotFound:           ErrNotFound,
	codes.Aborted:            ErrConflict,
	codes.FailedPrecondition: ErrEnded,
	codes.Unavailable:        ErrUnavailable,
	codes.ResourceExhausted:  ErrExhausted,
	codes.InvalidArgument:    ErrInvalid,
	codes.Canceled:           context.Canceled,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
}

// FromStatus gives a call's error back as the sentinel the server started
// from: by ErrorInfo reason, else by code. Other errors pass unchanged.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.BadRequest:
			if v := d.GetFieldViolations(); len(v) > 0 {
				return &statusError{&FieldError{v[0].GetField(), v[0].GetDescription()}, s}
			}
		case *errdetails.ErrorInfo:
			if known := byReason[d.GetReason()]; known != nil && d.GetDomain() == rpc.Domain {
				return &statusError{known, s}
			}
		}
	}
	if known := byCode[s.Code()]; known != nil {
		return &statusError{known, s}
	}
	return err
}

// Interceptors returns dial options that make every call on a connection
// return errors as FromStatus does.
func Interceptors() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return FromStatus(invoke(ctx, method, req, reply, cc, opts...))
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, cc, method, opts...)
			if err != nil {
				return nil, FromStatus(err)
			}
			return stream{s}, nil
		}),
	}
}

type stream struct{ grpc.ClientStream }

func (s stream) RecvMsg(m any) error { return FromStatus(s.ClientStream.RecvMsg(m)) }

// New returns a client of the session store on a connection that was dialled
// with Interceptors.
func New(conn grpc.ClientConnInterface) sessionv1.StorageServiceClient {
	return sessionv1.NewStorageServiceClient(conn)
}
