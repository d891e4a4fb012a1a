package server

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Limits bound what a caller may store. Sizes are of the encoded value, in
// bytes.
type Limits struct {
	EventData   int
	SessionData int
	Labels      int
}

const (
	maxLabelKey   = 128
	maxLabelValue = 1024
	maxDepth      = 64
)

// What the protos cannot say is checked here, by functions of their arguments
// alone that return what is wrong.

func checkID(field, id string, shards int) []rpc.Violation {
	if _, ok := sessionid.Shard(id, shards); ok {
		return nil
	}
	return []rpc.Violation{{Field: field, Value: id, Want: "a session id as this server gave it"}}
}

func checkLabels(field string, labels map[string]string, limits Limits) []rpc.Violation {
	var out []rpc.Violation
	if len(labels) > limits.Labels {
		out = append(out, rpc.Violation{Field: field, Value: strconv.Itoa(len(labels)), Want: fmt.Sprintf("at most %d labels", limits.Labels)})
	}
	for k, v := range labels {
		at := fmt.Sprintf("%s[%q]", field, rpc.Shorten(k))
		if !labelKey(k) {
			out = append(out, rpc.Violation{Field: at, Value: k, Want: fmt.Sprintf("a key of 1 to %d letters, digits, '.', '_', '-' and '/'", maxLabelKey)})
		}
		if len(v) > maxLabelValue || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			out = append(out, rpc.Violation{Field: at, Value: v, Want: fmt.Sprintf("a value of at most %d bytes without control characters", maxLabelValue)})
		}
	}
	return out
}

func labelKey(k string) bool {
	return k != "" && len(k) <= maxLabelKey && !strings.ContainsFunc(k, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/", r)
	})
}

// checkData checks that a value has a JSON form and is not too large.
func checkData(field string, v *structpb.Value, most int) []rpc.Violation {
	if v == nil {
		return nil
	}
	if n := proto.Size(v); n > most {
		return []rpc.Violation{{Field: field, Value: strconv.Itoa(n) + " bytes", Want: fmt.Sprintf("at most %d bytes", most)}}
	}
	if why := notJSON(v, maxDepth); why != "" {
		return []rpc.Violation{{Field: field, Want: why}}
	}
	return nil
}

func notJSON(v *structpb.Value, depth int) string {
	if depth == 0 {
		return fmt.Sprintf("at most %d levels of nesting", maxDepth)
	}
	switch k := v.GetKind().(type) {
	case nil:
		return "a JSON value: one part has no kind"
	case *structpb.Value_NumberValue:
		if math.IsNaN(k.NumberValue) || math.IsInf(k.NumberValue, 0) {
			return "a JSON value: NaN and infinities have no JSON form"
		}
	case *structpb.Value_ListValue:
		for _, e := range k.ListValue.GetValues() {
			if why := notJSON(e, depth-1); why != "" {
				return why
			}
		}
	case *structpb.Value_StructValue:
		for _, e := range k.StructValue.GetFields() {
			if why := notJSON(e, depth-1); why != "" {
				return why
			}
		}
	}
	return ""
}

// checkPolicy checks a policy as it would take effect over what it inherits
// from. Only fields that the policy sets itself, or contradicts, are blamed.
func checkPolicy(field string, effective *sessionv1.TTLPolicy) []rpc.Violation {
	var out []rpc.Violation
	for _, v := range lifetime.Check(effective) {
		out = append(out, rpc.Violation{Field: field + "." + v.Field, Value: v.Value, Want: v.Want})
	}
	return out
}

const reserved = "session:"

func checkEvents(events []*sessionv1.Event, limits Limits) []rpc.Violation {
	var out []rpc.Violation
	for i, e := range events {
		for _, v := range checkEvent(e, limits) {
			v.Field = fmt.Sprintf("events[%d].%s", i, v.Field) // only now: nearly all events are right
			out = append(out, v)
		}
	}
	return out
}

func checkEvent(e *sessionv1.Event, limits Limits) []rpc.Violation {
	var out []rpc.Violation
	if strings.HasPrefix(e.GetType(), reserved) && e.GetType() != "session:subscribe" {
		out = append(out, rpc.Violation{Field: "type", Value: e.GetType(), Want: "a type of your own: session: is the store's"})
	}
	if strings.HasPrefix(e.GetId(), reserved) {
		out = append(out, rpc.Violation{Field: "id", Value: e.GetId(), Want: "an id of your own: session: is the store's"})
	}
	out = append(out, checkTime("time", e.GetTime())...)
	return append(out, checkData("data", e.GetData(), limits.EventData)...)
}

var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func checkTime(field string, t *timestamppb.Timestamp) []rpc.Violation {
	if t == nil || (t.IsValid() && !t.AsTime().Before(earliest)) {
		return nil
	}
	return []rpc.Violation{{Field: field, Value: t.AsTime().Format(time.RFC3339), Want: "a time from the year 2000 on"}}
}

// parseUpdate reads what an UpdateSession changes.
func parseUpdate(req *sessionv1.UpdateSessionRequest, limits Limits) (storage.Update, []rpc.Violation) {
	u := storage.Update{MaxLabels: limits.Labels}
	s := req.GetSession()
	revision, bad := parseETag(req.GetEtag())
	u.IfRevision = revision
	bad = append(bad, checkLabels("session.labels", s.GetLabels(), limits)...)
	bad = append(bad, checkData("session.data", s.GetData(), limits.SessionData)...)
	paths := req.GetUpdateMask().GetPaths()
	if len(paths) == 0 {
		if s.GetLabels() != nil {
			paths = append(paths, "labels")
		}
		if s.GetData() != nil {
			paths = append(paths, "data")
		}
	}
	if len(paths) == 0 {
		bad = append(bad, rpc.Violation{Field: "session", Want: "labels or data to change"})
	}
	for _, p := range paths {
		key, isLabel := strings.CutPrefix(p, "labels.")
		switch {
		case p == "data":
			u.SetData, u.Data = true, s.GetData()
		case p == "labels":
			u.ReplaceLabels, u.SetLabels = true, s.GetLabels()
		case isLabel && labelKey(key):
			if v, ok := s.GetLabels()[key]; ok {
				if u.SetLabels == nil {
					u.SetLabels = map[string]string{}
				}
				u.SetLabels[key] = v
			} else {
				u.DeleteLabels = append(u.DeleteLabels, key)
			}
		default:
			bad = append(bad, rpc.Violation{Field: "updateMask", Value: p, Want: "labels, labels.<key> or data"})
		}
	}
	return u, bad
}

// parseETag reads a revision: 3, "3" or W/"3"; empty for any.
func parseETag(s string) (int64, []rpc.Violation) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(strings.Trim(strings.TrimPrefix(s, "W/"), `"`), 10, 64)
	if err != nil || n < 1 {
		return 0, []rpc.Violation{{Field: "etag", Value: s, Want: "a revision as the session showed it"}}
	}
	return n, nil
}
