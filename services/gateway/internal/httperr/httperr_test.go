package httperr_test

import (
	"encoding/json"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
)

func violation(st *status.Status) *errdetails.BadRequest_FieldViolation {
	for _, d := range st.Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok && len(bad.GetFieldViolations()) > 0 {
			return bad.GetFieldViolations()[0]
		}
	}
	return nil
}

func TestMistakesOfTheDecoderNameTheirField(t *testing.T) {
	for msg, field := range map[string]string{
		"proto:\u00a0(line 1:2): unknown field \"usr\"":                          "usr",
		"proto: syntax error (line 1:2): invalid value x":                        "body",
		"proto: (line 1:10): invalid value for int32 field maxExtensions: \"x\"": "maxExtensions",
		"unexpected EOF": "body",
		"EOF":            "body",
		"parsing field \"page_size\": strconv.ParseInt: parsing \"x\": invalid syntax": "pageSize",
		"too many values for field \"page_size\": 1, 2":                                "pageSize",
		"type mismatch, parameter: page_token, error: bad":                             "pageToken",
		"": "body",
	} {
		v := violation(httperr.Clean(status.New(codes.InvalidArgument, msg)))
		if v.GetField() != field || v.GetDescription() == "" {
			t.Errorf("%q: got field %q, %q, want %q", msg, v.GetField(), v.GetDescription(), field)
		}
	}
}

// The decoder varies the spaces of its messages from build to build; within
// one build the spelling is fixed, so both are given here.
func TestMessagesAreStable(t *testing.T) {
	for _, msg := range []string{"proto: (line 1:2): unknown field \"usr\"", "proto: syntax error (line 1:2): unexpected token x"} {
		a := httperr.Clean(status.New(codes.InvalidArgument, msg))
		b := httperr.Clean(status.New(codes.InvalidArgument, strings.ReplaceAll(msg, " ", "\u00a0")))
		if a.Message() != b.Message() || strings.Contains(a.Message(), "proto") {
			t.Errorf("got %q and %q", a.Message(), b.Message())
		}
	}
}

func TestDetailsOfTheStoreStay(t *testing.T) {
	in := status.Convert(rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "the breaker is open", nil, 30*time.Second))
	w := httptest.NewRecorder()
	httperr.Write(w, in.Err())
	if w.Header().Get("Retry-After") != "30" || !strings.Contains(w.Body.String(), "the breaker is open") {
		t.Errorf("got Retry-After %q, %s", w.Header().Get("Retry-After"), w.Body)
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Second: "1", 0: "1", time.Nanosecond: "1", time.Second: "1", time.Second + 1: "2", 90 * time.Second: "90"} {
		if got := httperr.Seconds(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

var internals = regexp.MustCompile(`\x{a0}|^proto:|strconv`)

// FuzzBody decodes whatever comes as a request and answers its error: always a
// Status in JSON that names a field.
func FuzzBody(f *testing.F) {
	for _, s := range []string{`{`, `{"usr":1}`, `{"user":5}`, `{"ttlPolicy":{"baseTtl":"x"}}`, `[]`, "\xff", `{"data":{"a":[1,{}]}}`, `{"user":"a","user":"b"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		err := protojson.Unmarshal(body, &sessionv1.CreateSessionRequest{})
		if err == nil {
			return
		}
		w := httptest.NewRecorder()
		httperr.Write(w, status.Error(codes.InvalidArgument, err.Error()))
		check(t, w, string(body))
	})
}

// FuzzMessage gives the normaliser any message.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{"", "proto: ", `unknown field ""`, `parsing field "a.b": x`, `invalid value for string field : `, "\xff\u00a0", `field "x" is not a map`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, msg string) {
		w := httptest.NewRecorder()
		httperr.Write(w, status.Error(codes.InvalidArgument, msg))
		if w.Code != 400 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q: got %d %q", msg, w.Code, w.Body)
		}
	})
}

func check(t *testing.T, w *httptest.ResponseRecorder, in string) {
	t.Helper()
	var st struct {
		Message string
		Details []struct{ FieldViolations []struct{ Field string } }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &st); err != nil || w.Code != 400 {
		t.Fatalf("%q: got %d %q: %v", in, w.Code, w.Body, err)
	}
	if len(st.Details) == 0 || len(st.Details[0].FieldViolations) != 1 || st.Details[0].FieldViolations[0].Field == "" {
		t.Errorf("%q: no field in %s", in, w.Body)
	}
	if !strings.Contains(in, "proto") && !strings.Contains(in, "strconv") && !strings.Contains(in, "\u00a0") && internals.MatchString(st.Message) {
		t.Errorf("%q: the decoder's own words: %q", in, st.Message)
	}
}
