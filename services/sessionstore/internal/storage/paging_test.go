package storage

import (
	"errors"
	"testing"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"0", "0-0", "1763980800000-7", "-1-0", "1-+1", "01-1", "9223372036854775807-18446744073709551615", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCursor("after", s)
		var bad *InvalidError
		if err != nil && (!errors.As(err, &bad) || bad.Field != "after") {
			t.Fatalf("%q: %v", s, err)
		}
		if err == nil && s != "0" && c.String() != s {
			t.Fatalf("%q is read as %q", s, c)
		}
	})
}

func TestCursorOrder(t *testing.T) {
	order := []Cursor{{}, {0, 1}, {1, 0}, {1, 2}, {2, 0}}
	for i, a := range order {
		for j, b := range order {
			want := min(1, max(-1, i-j))
			if got := a.Compare(b); got != want {
				t.Errorf("%v against %v: %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestPageTokens(t *testing.T) {
	q := ListQuery{User: "ann", Project: "acme"}
	at := PageToken{Shard: 63, After: "acme\x00ann\x00id"}
	q.Token = EncodePageToken("sessions", q, at)
	if got, err := ParsePageToken("sessions", q, 64); err != nil || got != at {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		kind   string
		q      ListQuery
		shards int
	}{
		"another list":  {"users", q, 64},
		"other filters": {"sessions", ListQuery{User: "bob", Project: "acme", Token: q.Token}, 64},
		"another phase": {"sessions", ListQuery{User: "ann", Project: "acme", Phase: sessionv1.Session_IDLE, Token: q.Token}, 64},
		"fewer shards":  {"sessions", q, 63},
		"nonsense":      {"sessions", ListQuery{User: "ann", Project: "acme", Token: "nonsense!"}, 64},
	} {
		var bad *InvalidError
		if _, err := ParsePageToken(c.kind, c.q, c.shards); !errors.As(err, &bad) || bad.Field != "pageToken" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParsePageToken: no token makes the parser fail otherwise than by an
// InvalidError, nor names a shard that is not there.
func FuzzParsePageToken(f *testing.F) {
	f.Add(EncodePageToken("sessions", ListQuery{}, PageToken{Shard: 3, After: "x"}))
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePageToken("sessions", ListQuery{Token: s}, 64)
		var bad *InvalidError
		if err != nil && !errors.As(err, &bad) {
			t.Fatal(err)
		}
		if err == nil && (p.Shard < 0 || p.Shard >= 64) {
			t.Fatalf("%q names shard %d", s, p.Shard)
		}
	})
}
