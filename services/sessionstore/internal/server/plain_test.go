package server

import (
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// text draws what is at the edge of the rules: mostly right, at times too long
// or with a character that is in no rule.
func text(t *rapid.T, name string, most int) string {
	s := rapid.OneOf(rapid.StringMatching(`[A-Za-z][A-Za-z0-9_.:-]{0,9}`), rapid.StringMatching(`[ -~é]{0,6}`), rapid.Just(""), rapid.Just("a:b")).Draw(t, name)
	if rapid.IntRange(0, 9).Draw(t, name+" long") == 0 && s != "" {
		s = strings.Repeat(s, most)[:most+rapid.IntRange(-1, 1).Draw(t, name+" more")*min(1, len(s)-1)]
	}
	return strings.ToValidUTF8(s, "")
}

func drawEvent(t *rapid.T) *sessionv1.Event {
	e := &sessionv1.Event{
		Id: text(t, "id", 128), Type: text(t, "type", 128), Source: text(t, "source", 256), Subject: text(t, "subject", 1024),
		Origin: sessionv1.Event_Origin(rapid.IntRange(0, 9).Draw(t, "origin")),
	}
	if rapid.Bool().Draw(t, "has data") {
		e.Data, e.Time = structpb.NewStringValue("x"), &timestamppb.Timestamp{Seconds: rapid.Int64().Draw(t, "time")}
	}
	if rapid.IntRange(0, 5).Draw(t, "traced") == 0 {
		e.Traceparent = text(t, "traceparent", 64)
	}
	return e
}

func drawItem(t *rapid.T) *sessionv1.ExtendTTLRequest {
	r := &sessionv1.ExtendTTLRequest{Id: text(t, "id", 50), ActivityKind: text(t, "kind", 32), EventId: text(t, "event", 128)}
	if rapid.IntRange(0, 5).Draw(t, "counted") == 0 {
		r.Counts = map[string]int64{text(t, "counted kind", 32): rapid.Int64().Draw(t, "count")}
	}
	return r
}

// TestWhatIsPlainIsValid: no request that breaks a rule gets by.
func TestWhatIsPlainIsValid(t *testing.T) {
	validator, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	plain := 0
	judge := func(t *rapid.T, m proto.Message) {
		if Plain(m) {
			plain++
			if err := validator.Validate(m); err != nil {
				t.Fatalf("plain, but: %v", err)
			}
		}
	}
	draw := func(t *rapid.T) {
		// Few items, or no request would be right in all of them.
		judge(t, &sessionv1.AppendEventsRequest{Id: text(t, "session", 50), Events: rapid.SliceOfN(rapid.Custom(drawEvent), 0, 2).Draw(t, "events")})
		judge(t, &sessionv1.BatchExtendTTLRequest{Items: rapid.SliceOfN(rapid.Custom(drawItem), 0, 2).Draw(t, "items")})
	}
	// Some runs draw hardly a plain one.
	for range 20 {
		if rapid.Check(t, draw); plain >= 10 {
			break
		}
	}
	if plain < 10 {
		t.Errorf("only %d plain requests were drawn: that proves nothing", plain)
	}
	for _, n := range []int{0, 1, 500, 501, 1000, 1001} {
		events, items := make([]*sessionv1.Event, n), make([]*sessionv1.ExtendTTLRequest, n)
		for i := range n {
			events[i], items[i] = &sessionv1.Event{Type: "input:text"}, &sessionv1.ExtendTTLRequest{Id: "x", ActivityKind: "input"}
		}
		for _, m := range []proto.Message{&sessionv1.AppendEventsRequest{Id: "x", Events: events}, &sessionv1.BatchExtendTTLRequest{Items: items}} {
			if valid := validator.Validate(m) == nil; Plain(m) != valid {
				t.Errorf("%d items in %T: plain %v, valid %v", n, m, Plain(m), valid)
			}
		}
	}
}

// TestUsualRequestsArePlain: what clients send is spared.
func TestUsualRequestsArePlain(t *testing.T) {
	for name, m := range map[string]proto.Message{
		"events": &sessionv1.AppendEventsRequest{Id: "s", Events: []*sessionv1.Event{{Id: "0b1c-2", Type: "step:started", Source: "web", Subject: "über", Time: timestamppb.Now(), Data: structpb.NewNumberValue(1)}}},
		"items":  &sessionv1.BatchExtendTTLRequest{Items: []*sessionv1.ExtendTTLRequest{{Id: "s", ActivityTime: timestamppb.Now(), ActivityKind: "step_progress", EventId: "e/1"}}},
	} {
		if !Plain(m) {
			t.Errorf("%s: not plain", name)
		}
	}
	if Plain(&sessionv1.GetSessionRequest{Id: "x"}) {
		t.Error("a request of a kind that nobody looks at is plain")
	}
}
