package storage

import (
	"encoding/base64"
	"hash/fnv"
	"strconv"
	"strings"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Cursor is an event's place in a log or a feed: milliseconds and a sequence
// number within them, as Redis stream ids are, and spelled like them.
type Cursor struct {
	Millis int64
	Seq    uint64
}

// String spells the cursor "1763980800000-0".
func (c Cursor) String() string {
	b := make([]byte, 0, 24)
	b = strconv.AppendInt(b, c.Millis, 10)
	b = append(b, '-')
	return string(strconv.AppendUint(b, c.Seq, 10))
}

// Compare orders cursors.
func (c Cursor) Compare(d Cursor) int {
	switch {
	case c.Millis != d.Millis:
		if c.Millis < d.Millis {
			return -1
		}
		return 1
	case c.Seq < d.Seq:
		return -1
	case c.Seq > d.Seq:
		return 1
	default:
		return 0
	}
}

// ParseCursor reads a cursor; "0" is the one before all events.
func ParseCursor(field, s string) (Cursor, error) {
	ms, seq, found := strings.Cut(s, "-")
	if !found && s == "0" {
		return Cursor{}, nil
	}
	m, err1 := strconv.ParseUint(ms, 10, 63)
	q, err2 := strconv.ParseUint(seq, 10, 64)
	if c := (Cursor{Millis: int64(m), Seq: q}); err1 == nil && err2 == nil && c.String() == s {
		return c, nil
	}
	return Cursor{}, &InvalidError{Field: field, Value: Shorten(s), Want: `a cursor that this server gave, or "0" for the beginning`}
}

// Shorten cuts a value for an error message.
func Shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// PageToken is the place after which a page starts: a shard and the last
// index entry seen on it. It is bound to the query's filters.
type PageToken struct {
	Shard int
	After string
}

// EncodePageToken spells a token for the page after p of the query q; kind
// keeps the tokens of different lists apart.
func EncodePageToken(kind string, q ListQuery, p PageToken) string {
	raw := "1\x00" + fingerprint(kind, q) + "\x00" + strconv.Itoa(p.Shard) + "\x00" + p.After
	return base64.RawURLEncoding.EncodeToString([]byte(raw))
}

// ParsePageToken reads a token; the empty one is the start. A token of another
// list, other filters or a shard that is not there is an InvalidError.
func ParsePageToken(kind string, q ListQuery, shards int) (PageToken, error) {
	if q.Token == "" {
		return PageToken{}, nil
	}
	bad := &InvalidError{Field: "pageToken", Value: Shorten(q.Token), Want: "the nextPageToken of the page before, with the same filters"}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(q.Token)
	if err != nil {
		return PageToken{}, bad
	}
	parts := strings.SplitN(string(raw), "\x00", 4)
	if len(parts) != 4 || parts[0] != "1" || parts[1] != fingerprint(kind, q) {
		return PageToken{}, bad
	}
	shard, err := strconv.Atoi(parts[2])
	if err != nil || shard < 0 || shard >= shards {
		return PageToken{}, bad
	}
	return PageToken{Shard: shard, After: parts[3]}, nil
}

func fingerprint(kind string, q ListQuery) string {
	h := fnv.New64a()
	for _, s := range []string{kind, q.User, q.Project, q.Phase.String()} {
		_, _ = h.Write([]byte(s))
		_, _ = h.Write([]byte{0})
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

// MatchesPhase says whether a session in phase p belongs in a list filtered by
// want.
func MatchesPhase(want, p sessionv1.Session_Phase) bool {
	if want != sessionv1.Session_PHASE_UNSPECIFIED {
		return want == p
	}
	return p != sessionv1.Session_ENDED && p != sessionv1.Session_EXPIRED
}
