package storage

import (
	"strings"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
)

// Paging over the shards is the same for every backend: shards one after the
// other, on each an ordered set of keys. Only how a stretch of keys is read
// differs, and that is what a backend passes in.

// ListSource is an ordered set of one shard.
type ListSource struct {
	// Retired is the set of over sessions by the time of their purge; else
	// ByUser chooses between the two sets of live sessions.
	Retired bool
	ByUser  bool
	// Prefix narrows a set of live sessions.
	Prefix string
}

// Listed is an entry of a source and its session.
type Listed struct {
	Key     string
	Session *sessionv1.Session
}

// ScanFunc reads at most limit entries of a shard's source with keys after the
// given one, in order. It returns fewer only when there are no more.
type ScanFunc func(shard int, src ListSource, after string, limit int) ([]Listed, error)

// scanBudget bounds how many entries one page looks at when a filter drops
// most of them; the page is then short and has a token.
const scanBudget = 5000

// ListPages returns a page of the sessions that q selects.
func ListPages(q ListQuery, shards int, scan ScanFunc) (SessionPage, error) {
	at, err := ParsePageToken("sessions", q, shards)
	if err != nil {
		return SessionPage{}, err
	}
	sources := sources(q)
	// The token's place is "<source>:<key>".
	source, after := 0, ""
	if i := strings.IndexByte(at.After, ':'); i == 1 {
		source, after = int(at.After[0]-'0'), at.After[2:]
	}
	first, last := 0, shards-1
	if q.User != "" && q.Project != "" && !sources[0].Retired && len(sources) == 1 {
		first = UserShard(q.Project, q.User, shards)
		last = first
	}
	var page SessionPage
	seen := 0
	for n := max(first, at.Shard); n <= last; n++ {
		for ; source < len(sources); source++ {
			for {
				limit := q.Limit - len(page.Sessions)
				entries, err := scan(n, sources[source], after, limit)
				if err != nil {
					return SessionPage{}, err
				}
				for _, e := range entries {
					after = e.Key
					if e.Session != nil && matches(q, e.Session) {
						page.Sessions = append(page.Sessions, e.Session)
					}
				}
				seen += len(entries)
				if len(page.Sessions) == q.Limit || seen >= scanBudget {
					page.Next = EncodePageToken("sessions", q, PageToken{Shard: n, After: string(rune('0'+source)) + ":" + after})
					return page, nil
				}
				if len(entries) < limit {
					break
				}
			}
			after = ""
		}
		source = 0
	}
	return page, nil
}

// sources says where the sessions of a query can be.
func sources(q ListQuery) []ListSource {
	live := ListSource{}
	switch {
	case q.Project != "" && q.User != "":
		live.Prefix = q.Project + "\x00" + q.User + "\x00"
	case q.Project != "":
		live.Prefix = q.Project + "\x00"
	case q.User != "":
		live.ByUser, live.Prefix = true, q.User+"\x00"
	}
	switch q.Phase {
	case sessionv1.Session_ENDED:
		return []ListSource{{Retired: true}}
	case sessionv1.Session_EXPIRED:
		// Swept ones, and those past their deadline that are not swept yet.
		return []ListSource{{Retired: true}, live}
	default:
		return []ListSource{live}
	}
}

func matches(q ListQuery, s *sessionv1.Session) bool {
	return (q.User == "" || q.User == s.GetUser()) &&
		(q.Project == "" || q.Project == s.GetProject()) &&
		MatchesPhase(q.Phase, s.GetPhase())
}

// UserScanFunc reads the live users of one shard's set of live sessions by
// project, with keys after the given one, at most limit users, each with its
// count of live sessions. It returns fewer only when there are no more.
type UserScanFunc func(shard int, prefix, after string, limit int) ([]*sessionv1.ActiveUser, error)

// UserPages returns a page of the users that q selects.
func UserPages(q ListQuery, shards int, scan UserScanFunc) (UserPage, error) {
	at, err := ParsePageToken("users", q, shards)
	if err != nil {
		return UserPage{}, err
	}
	prefix := ""
	if q.Project != "" {
		prefix = q.Project + "\x00"
	}
	after := at.After
	var page UserPage
	for n := at.Shard; n < shards; n++ {
		users, err := scan(n, prefix, after, q.Limit-len(page.Users))
		if err != nil {
			return UserPage{}, err
		}
		page.Users = append(page.Users, users...)
		if len(page.Users) == q.Limit {
			u := users[len(users)-1]
			// After every session of the user: \x01 sorts behind the \x00 that
			// ends its name.
			page.Next = EncodePageToken("users", q, PageToken{Shard: n, After: u.GetProject() + "\x00" + u.GetUser() + "\x01"})
			return page, nil
		}
		after = ""
	}
	return page, nil
}

// UserShard is the shard of a named user's sessions.
func UserShard(project, user string, shards int) int {
	return sessionid.ShardOf(project, user, "", shards)
}

// LastPart is the session id at the end of an index key.
func LastPart(key string) string {
	return key[strings.LastIndexByte(key, 0)+1:]
}
