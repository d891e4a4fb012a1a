package lifetime

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func TestResolveTakesEachFieldFromTheFirstLayer(t *testing.T) {
	session := &sessionv1.TTLPolicy{Extension: durationpb.New(time.Minute), MaxExtensions: proto.Int32(0)}
	project := &sessionv1.TTLPolicy{
		Extension: durationpb.New(time.Hour), BaseTtl: durationpb.New(2 * time.Hour),
		ActivityRules: []*sessionv1.ActivityRule{{Pattern: "a:*", Kind: "input"}},
	}
	got := Resolve(session, nil, project, DefaultPolicy())
	want := DefaultPolicy()
	want.Extension = durationpb.New(time.Minute)
	want.MaxExtensions = proto.Int32(0)
	want.BaseTtl = durationpb.New(2 * time.Hour)
	want.ActivityRules = project.ActivityRules
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDefaultCapIs48Hours(t *testing.T) {
	if got, want := NewTerms(0, DefaultPolicy()).Cap, (48 * time.Hour).Milliseconds(); got != want {
		t.Errorf("cap %d, want %d", got, want)
	}
}

func TestCapNeverOverflows(t *testing.T) {
	p := DefaultPolicy()
	p.Extension, p.MaxExtensions = durationpb.New(315360000*time.Second), proto.Int32(1_000_000)
	if got := NewTerms(1_700_000_000_000, p).Cap; got != maxMillis || !Time(got).IsValid() {
		t.Errorf("cap %d, want %d", got, int64(maxMillis))
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		p      *sessionv1.TTLPolicy
		fields []string
	}{
		{"default", nil, nil},
		{"cap under base", &sessionv1.TTLPolicy{MaxLifetime: durationpb.New(10 * time.Hour)}, []string{"maxLifetime"}},
		{"extension over max_lifetime", &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Minute), MaxLifetime: durationpb.New(time.Hour)}, []string{"extension"}},
		{"no base", &sessionv1.TTLPolicy{BaseTtl: durationpb.New(0)}, []string{"baseTtl"}},
		{"negative extension", &sessionv1.TTLPolicy{Extension: durationpb.New(-time.Hour)}, []string{"extension"}},
		{"exactly the base", &sessionv1.TTLPolicy{MaxLifetime: durationpb.New(24 * time.Hour)}, nil},
	} {
		got := Check(Resolve(c.p, DefaultPolicy()))
		var fields []string
		for _, v := range got {
			fields = append(fields, v.Field)
			if v.Value == "" || v.Want == "" {
				t.Errorf("%s: %+v says too little", c.name, v)
			}
		}
		if len(fields) != len(c.fields) || (len(fields) > 0 && fields[0] != c.fields[0]) {
			t.Errorf("%s: %v, want %v", c.name, fields, c.fields)
		}
	}
}
