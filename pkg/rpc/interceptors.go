package rpc

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/livinguniverse/stoker/pkg/auth"
)

// chain is the one order of interceptors, outermost first. (Tracing is a stats
// handler and so outside of all of them: each sees the call's span.)
//
//  1. logging: sees the final status of every call, whoever gave it.
//  2. recovery: inside logging, so that a panic is logged as the INTERNAL it
//     becomes; outside everything that may panic.
//  3. status: turns domain errors into statuses for both above; outside auth
//     and validation, whose errors are statuses already and pass unchanged. It
//     also calls BeforeAnswer.
//  4. auth: before validation, so that nobody unknown learns what is valid.
//  5. validation: innermost, on messages of a caller who is known.
type chain struct {
	log       *slog.Logger
	toStatus  func(error) error
	before    func(ctx context.Context, err error)
	auth      auth.Authenticator
	plain     func(msg any) bool
	validator protovalidate.Validator
}

// unary is all of them in one: a chain costs each call an allocation a link.
func (c *chain) unary(ctx context.Context, req any, i *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	resp, err := c.recoverUnary(ctx, req, i, next)
	c.logCall(ctx, i.FullMethod, begin, err)
	return resp, err
}

func (c *chain) recoverUnary(ctx context.Context, req any, i *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, c.recovered(ctx, p)
		}
	}()
	resp, err = c.answerUnary(ctx, req, i, next)
	err = c.mapped(err)
	c.before(ctx, err)
	return resp, err
}

func (c *chain) answerUnary(ctx context.Context, req any, i *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := c.authenticate(ctx, i.FullMethod)
	if err != nil {
		return nil, err
	}
	if err := c.validate(req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// stream is the same for streams.
func (c *chain) stream(srv any, ss grpc.ServerStream, i *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	begin := time.Now()
	err := c.recoverStream(srv, ss, i, next)
	c.logCall(ss.Context(), i.FullMethod, begin, err)
	return err
}

func (c *chain) recoverStream(srv any, ss grpc.ServerStream, i *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.recovered(ss.Context(), p)
		}
	}()
	err = c.mapped(c.answerStream(srv, ss, i, next))
	c.before(ss.Context(), err)
	return err
}

func (c *chain) answerStream(srv any, ss grpc.ServerStream, i *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := c.authenticate(ss.Context(), i.FullMethod)
	if err != nil {
		return err
	}
	return next(srv, &callStream{contextStream: contextStream{ss, ctx}, chain: c})
}

func (c *chain) logCall(ctx context.Context, method string, begin time.Time, err error) {
	code := status.Code(err)
	level := slog.LevelDebug
	switch code {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		level = slog.LevelError
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		level = slog.LevelWarn
	default:
	}
	if !c.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("code", code.String()),
		slog.Duration("duration", time.Since(begin)),
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		attrs = append(attrs, slog.String("peer", p.Addr.String()))
	}
	// The cause stays inside: it is logged, not answered.
	if cause := errors.Unwrap(err); cause != nil {
		attrs = append(attrs, slog.String("cause", cause.Error()))
	}
	c.log.LogAttrs(ctx, level, "call", attrs...)
}

func (c *chain) recovered(ctx context.Context, p any) error {
	c.log.ErrorContext(ctx, "panic in a handler", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	err := internalError()
	c.before(ctx, err)
	return err
}

func internalError() error {
	return Error(codes.Internal, ReasonInternal, "internal error", nil, 0)
}

// mapped returns the status to answer, with the error as its cause.
func (c *chain) mapped(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if c.toStatus != nil {
		if mapped := c.toStatus(err); mapped != nil {
			return caused{mapped, err}
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return caused{status.Error(codes.Canceled, "the caller went away"), err}
	case errors.Is(err, context.DeadlineExceeded):
		return caused{status.Error(codes.DeadlineExceeded, "the call's deadline has passed"), err}
	default:
		return caused{internalError(), err}
	}
}

// caused is a status that remembers the error it hides from the caller.
type caused struct {
	status error
	cause  error
}

func (e caused) Error() string              { return e.status.Error() }
func (e caused) Unwrap() error              { return e.cause }
func (e caused) GRPCStatus() *status.Status { return status.Convert(e.status) }

func (c *chain) authenticate(ctx context.Context, method string) (context.Context, error) {
	// Probes come before anybody has a token.
	if method == "/grpc.health.v1.Health/Check" || method == "/grpc.health.v1.Health/Watch" {
		return ctx, nil
	}
	p, err := c.auth.Authenticate(ctx)
	if err != nil {
		return nil, err
	}
	return auth.NewContext(ctx, p), nil
}

// contextStream is a stream with a context of its own.
type contextStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream's context is a method of the stream
}

// Context implements grpc.ServerStream.
func (s *contextStream) Context() context.Context { return s.ctx }

// callStream is a stream whose caller is known: it validates each message as it
// comes, and knows the first that goes.
type callStream struct {
	contextStream
	chain    *chain
	answered bool
}

// SendMsg implements grpc.ServerStream.
func (s *callStream) SendMsg(m any) error {
	if !s.answered {
		s.answered = true
		s.chain.before(s.Context(), nil)
	}
	return s.ServerStream.SendMsg(m)
}

// RecvMsg implements grpc.ServerStream.
func (s *callStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.chain.validate(m)
}

func (c *chain) validate(req any) error {
	m, ok := req.(proto.Message)
	if !ok || c.plain(req) {
		return nil
	}
	err := c.validator.Validate(m)
	if err == nil {
		return nil
	}
	var bad *protovalidate.ValidationError
	if errors.As(err, &bad) {
		return Invalid(violations(bad)...)
	}
	return err
}
