package server

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func TestParseETag(t *testing.T) {
	for in, want := range map[string]int64{"": 0, "3": 3, `"3"`: 3, `W/"12"`: 12} {
		if got, bad := parseETag(in); got != want || bad != nil {
			t.Errorf("%q: %d %v, want %d", in, got, bad, want)
		}
	}
	for _, in := range []string{"x", "0", "-1", `"`, "W/", "9223372036854775808", "3 4"} {
		if _, bad := parseETag(in); len(bad) != 1 || bad[0].Field != "etag" {
			t.Errorf("%q: %v", in, bad)
		}
	}
}

// FuzzParseUpdate: whatever comes in, an update either has violations that name
// field and expectation, or changes labels and data alone, within its limits.
func FuzzParseUpdate(f *testing.F) {
	f.Add("labels", "a", "b", `"3"`)
	f.Add("labels.a,data", "a", "", "")
	f.Add("user", "", "\x00", "W/x")
	f.Add("labels.", "k", "v", "1")
	f.Fuzz(func(t *testing.T, mask, key, value, etag string) {
		u, bad := parseUpdate(&sessionv1.UpdateSessionRequest{
			Session:    &sessionv1.Session{Labels: map[string]string{key: value}, Data: structpb.NewStringValue(value)},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: strings.Split(mask, ",")}, Etag: etag,
		}, Limits{EventData: 100, SessionData: 100, Labels: 2})
		for _, v := range bad {
			if v.Field == "" || v.Want == "" {
				t.Errorf("says too little: %+v", v)
			}
		}
		if bad != nil {
			return
		}
		if u.IfRevision < 0 || (!u.SetData && !u.ReplaceLabels && len(u.SetLabels)+len(u.DeleteLabels) == 0) {
			t.Errorf("%q %q: changes nothing: %+v", mask, etag, u)
		}
		for k, v := range u.SetLabels {
			if !labelKey(k) || len(v) > maxLabelValue {
				t.Errorf("label %q=%q got through", k, v)
			}
		}
	})
}

// FuzzCheckEvents: an event that gets through has a type of its caller's own.
func FuzzCheckEvents(f *testing.F) {
	f.Add("input:text", "1")
	f.Add("session:expired", "session:created")
	f.Fuzz(func(t *testing.T, typ, id string) {
		bad := checkEvents([]*sessionv1.Event{{Type: typ, Id: id}}, Limits{})
		own := !strings.HasPrefix(id, reserved) && (!strings.HasPrefix(typ, reserved) || typ == "session:subscribe")
		if own != (bad == nil) {
			t.Errorf("type %q, id %q: %v", typ, id, bad)
		}
		if err := rpc.Invalid(bad...); (err == nil) != own {
			t.Errorf("type %q, id %q: %v", typ, id, err)
		}
	})
}
