package rpc

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain of every ErrorInfo.
const Domain = "stoker"

// Reasons of ErrorInfo: stable names that clients may rely on.
const (
	ReasonInvalid          = "INVALID_ARGUMENT"
	ReasonNotFound         = "NOT_FOUND"
	ReasonSessionNotFound  = "SESSION_NOT_FOUND"
	ReasonPolicyNotFound   = "POLICY_NOT_FOUND"
	ReasonConflict         = "REVISION_CONFLICT"
	ReasonSessionOver      = "SESSION_OVER"
	ReasonStoreUnavailable = "STORE_UNAVAILABLE"
	ReasonLimitReached     = "LIMIT_REACHED"
	ReasonInternal         = "INTERNAL"
)

// Violation is one field that is to blame: its JSON path, its value (shortened
// and quoted) and what was expected.
type Violation struct {
	Field string
	Value string
	Want  string
}

// String says what came and what was expected.
func (v Violation) String() string {
	if v.Value == "" {
		return "want " + v.Want
	}
	return fmt.Sprintf("got %q, want %s", Shorten(v.Value), v.Want)
}

// Shorten cuts a value to 64 bytes for an error message.
func Shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strings.ToValidUTF8(s[:cut], "\uFFFD") + "..."
}

// Invalid returns INVALID_ARGUMENT with a FieldViolation for each field to
// blame, nil when there is none.
func Invalid(violations ...Violation) error {
	if len(violations) == 0 {
		return nil
	}
	bad := &errdetails.BadRequest{}
	for _, v := range violations {
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: v.Field, Description: v.String(), Reason: ReasonInvalid,
		})
	}
	msg := fmt.Sprintf("%s: %s", violations[0].Field, violations[0])
	if n := len(violations) - 1; n > 0 {
		msg += fmt.Sprintf(" (and %d more)", n)
	}
	return build(codes.InvalidArgument, msg, bad, info(ReasonInvalid, nil))
}

// FieldViolation returns INVALID_ARGUMENT for one field.
func FieldViolation(field, value, want string) error {
	return Invalid(Violation{Field: field, Value: value, Want: want})
}

// Error returns a status with an ErrorInfo and, where retryAfter is more than
// 0, a RetryInfo. meta may be nil.
func Error(code codes.Code, reason, msg string, meta map[string]string, retryAfter time.Duration) error {
	details := []protoadapt.MessageV1{info(reason, meta)}
	if retryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	}
	return build(code, msg, details...)
}

func info(reason string, meta map[string]string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: reason, Domain: Domain, Metadata: meta}
}

func build(code codes.Code, msg string, details ...protoadapt.MessageV1) error {
	s := status.New(code, msg)
	if with, err := s.WithDetails(details...); err == nil {
		s = with
	}
	return s.Err()
}
