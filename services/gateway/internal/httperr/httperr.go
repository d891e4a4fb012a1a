// Package httperr answers every error of the gateway in one form: a
// google.rpc.Status in JSON, with the HTTP code that belongs to it.
package httperr

import (
	"context"
	"errors"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/livinguniverse/stoker/pkg/rpc"
)

// Passed says which headers of an answer of the store callers get, too, and
// under which name.
func Passed(name string) (string, bool) {
	switch name {
	case "stoker-served-by", "stoker-stale-for", "stoker-durability":
		return name, true
	}
	return "", false
}

// Handle is the error handler of the REST mux, which passes headers on by
// itself only with a message: a refusal may come from a fallback as well.
func Handle(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	md, _ := runtime.ServerMetadataFromContext(ctx)
	for name, values := range md.HeaderMD {
		if name, ok := Passed(name); ok {
			w.Header().Set(name, values[0])
		}
	}
	Write(w, err)
}

// Routing answers a path or a method that there is no route for.
func Routing(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpStatus int) {
	switch httpStatus {
	case http.StatusMethodNotAllowed:
		WriteStatus(w, httpStatus, codes.Unimplemented, "METHOD_NOT_ALLOWED", "the method "+rpc.Shorten(r.Method)+" is not supported on this path")
	case http.StatusBadRequest:
		WriteStatus(w, httpStatus, codes.InvalidArgument, rpc.ReasonInvalid, "malformed path")
	default:
		WriteStatus(w, http.StatusNotFound, codes.NotFound, "NO_ROUTE", "there is no route "+rpc.Shorten(r.URL.Path))
	}
}

// Write answers an error.
func Write(w http.ResponseWriter, err error) {
	st := Clean(status.Convert(err))
	code := runtime.HTTPStatusFromCode(st.Code())
	for _, d := range st.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok && i.GetDomain() == rpc.Domain && i.GetReason() == rpc.ReasonSessionOver {
			code = http.StatusConflict // not a mistake in the request: the session's state
		}
	}
	if st.Code() == codes.ResourceExhausted && len(st.Proto().GetDetails()) == 0 {
		// Only the transport says this without a reason, of a message's size:
		// asking again, as 429 suggests, would not help.
		WriteStatus(w, http.StatusRequestEntityTooLarge, codes.ResourceExhausted, "MESSAGE_TOO_LARGE", "the request or its answer is too large: send or ask for less at once")
		return
	}
	write(w, code, st)
}

// WriteStatus answers with an HTTP code that gRPC has no equal for.
func WriteStatus(w http.ResponseWriter, httpStatus int, code codes.Code, reason, msg string) {
	write(w, httpStatus, status.Convert(rpc.Error(code, reason, msg, nil, 0)))
}

func write(w http.ResponseWriter, httpStatus int, st *status.Status) {
	h := w.Header()
	for _, d := range st.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			h.Set("Retry-After", Seconds(retry.GetRetryDelay().AsDuration()))
		}
	}
	body, err := protojson.Marshal(st.Proto())
	if err != nil {
		body = []byte(`{"code":13,"message":"internal error"}`)
		httpStatus = http.StatusInternalServerError
	}
	h.Set("Content-Type", "application/json")
	h.Del("Content-Length")
	h.Del("ETag")
	w.WriteHeader(httpStatus)
	_, _ = w.Write(body)
}

// ErrStopping is the cause of a context that ends because the gateway stops.
var ErrStopping = errors.New("the gateway stops")

// Cut returns the error to answer for what ended with err under ctx: what was cut
// because the gateway stops is to be asked for again, elsewhere or later.
func Cut(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), ErrStopping) {
		return status.Error(codes.Unavailable, "stopping")
	}
	return err
}

// Seconds spells a delay for Retry-After: whole seconds, rounded up, at least 1.
func Seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

// Clean takes out of a status what is not for callers, and puts into it what
// they need: transport errors lose their addresses, JSON mistakes get the name
// of their field.
func Clean(st *status.Status) *status.Status {
	if len(st.Proto().GetDetails()) > 0 {
		return st
	}
	if !utf8.ValidString(st.Message()) {
		// Some messages quote what the caller sent; JSON cannot carry this.
		st = status.New(st.Code(), strings.ToValidUTF8(st.Message(), "\uFFFD"))
	}
	switch st.Code() {
	case codes.InvalidArgument:
		return status.Convert(badJSON(st.Message()))
	case codes.Unavailable:
		return status.Convert(rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "the service behind the gateway cannot answer now; try again", nil, time.Second))
	case codes.Unknown, codes.Internal:
		return status.Convert(rpc.Error(codes.Internal, rpc.ReasonInternal, "internal error", nil, 0))
	default:
		return st
	}
}

var (
	unknownField = regexp.MustCompile(`unknown field "([^"]+)"`)
	invalidValue = regexp.MustCompile(`invalid value for [a-z0-9]+ (?:field|value) ?([A-Za-z0-9_]*):? (.*)`)
	badParameter = regexp.MustCompile(`parameter: ([A-Za-z0-9_.]+), error: (.*)`)
	// What the REST mux says of a query's parameters.
	badQuery = regexp.MustCompile(`^(?:parsing (?:field|list|map key|map value)|too many values for field|duplicate field|invalid path:|field) "([A-Za-z0-9_.]+)"(?: is not (?:a|an) .*|: (.*))?$`)
	quoted   = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
	position = regexp.MustCompile(`^\(line \d+:\d+\): `)
)

// badJSON gives the decoder's message a stable form and names the field.
// Protojson varies the spaces of its messages on purpose.
func badJSON(msg string) error {
	msg = strings.ReplaceAll(msg, "\u00a0", " ")
	for _, prefix := range []string{"proto: ", "syntax error ", "proto:"} {
		msg = strings.TrimSpace(strings.TrimPrefix(msg, prefix))
	}
	at := position.FindString(msg)
	msg = strings.TrimPrefix(msg, at)
	if m := unknownField.FindStringSubmatch(msg); m != nil {
		return rpc.FieldViolation(m[1], "", "a known field; there is none of this name")
	}
	if m := badParameter.FindStringSubmatch(msg); m != nil {
		return rpc.FieldViolation(rpc.JSONName(m[1]), m[2], "a value of the parameter's type")
	}
	if m := badQuery.FindStringSubmatch(msg); m != nil {
		value := ""
		if q := quoted.FindStringSubmatch(m[2]); q != nil {
			value = q[1]
		}
		return rpc.FieldViolation(rpc.JSONName(m[1]), value, "one value of the field's type")
	}
	if m := invalidValue.FindStringSubmatch(msg); m != nil && m[1] != "" {
		return rpc.FieldViolation(rpc.JSONName(m[1]), strings.Trim(m[2], `"`), "a value of the field's type")
	}
	if msg == "EOF" || strings.Contains(msg, "unexpected EOF") {
		msg = "the JSON ends too early"
	}
	return rpc.FieldViolation("body", "", "valid JSON: "+at+msg)
}
