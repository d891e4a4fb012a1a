package storagetest

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// extend reports activities in one call: each must be judged as if the ones
// before it had been reported alone.
func (m *machine) extend(items ...storage.Activity) {
	want := make([]sessionv1.ExtendTTLResponse_Outcome, len(items))
	for i, a := range items {
		want[i] = m.ref.extend(a.SessionID, a.Time.UnixMilli(), a.EventID, m.now)
	}
	res, err := m.ms.Extend(m.Context(), items)
	m.ok(err)
	if len(res) != len(items) {
		m.Fatalf("%d answers for %d activities", len(res), len(items))
	}
	for i, a := range items {
		m.ok(res[i].Err)
		if got := res[i].Response.GetOutcome(); got != want[i] {
			m.Fatalf("at +%d, activity %s of %s at +%d: %v (%s), want %v", m.now-ModelStart, a.EventID, a.SessionID, a.Time.UnixMilli()-ModelStart,
				got, res[i].Response.GetReason(), want[i])
		}
	}
	m.sent = append(m.sent, items...)
}

// draw makes up something that no event tells of: in order, late, from the
// future, or within a millisecond of where a rule changes its mind.
func (m *machine) draw(s *refSession) storage.Activity {
	m.made++
	at := m.now + int64(rapid.SampledFrom([]int{0, 0, -100, -1500, -6000, 5000}).Draw(m.T, "shift"))
	if rapid.Bool().Draw(m.T, "near") {
		at = rapid.SampledFrom([]int64{s.expire, s.expire - s.below, s.last, s.cause, s.cause + s.interval}).Draw(m.T, "edge")
		at = max(ModelStart-10_000, at) + int64(rapid.IntRange(-1, 1).Draw(m.T, "off"))
	}
	a := storage.Activity{SessionID: s.id, Time: time.UnixMilli(at), Kind: "input", EventID: fmt.Sprint("e", m.made)}
	if rapid.IntRange(0, 3).Draw(m.T, "unnamed") == 0 {
		a.EventID = ""
	}
	return a
}

func (m *machine) activity() bool {
	s := m.pick()
	if s == nil {
		return false
	}
	m.extend(m.draw(s))
	return true
}

// again sends an earlier report once more.
func (m *machine) again() bool {
	if len(m.sent) == 0 {
		return false
	}
	m.extend(m.earlier())
	return true
}

func (m *machine) earlier() storage.Activity {
	return m.sent[rapid.IntRange(0, len(m.sent)-1).Draw(m.T, "earlier")]
}

// batch reports several activities in one call, some of them twice and in any
// order.
func (m *machine) batch() bool {
	var items []storage.Activity
	for range rapid.IntRange(2, 5).Draw(m.T, "items") {
		s := m.pick()
		if s == nil {
			return false
		}
		switch kind := rapid.IntRange(0, 3).Draw(m.T, "item"); {
		case kind == 0 && len(items) > 0:
			items = append(items, items[rapid.IntRange(0, len(items)-1).Draw(m.T, "twice")])
		case kind == 1 && len(m.sent) > 0:
			items = append(items, m.earlier())
		default:
			items = append(items, m.draw(s))
		}
	}
	m.extend(items...)
	return true
}

// sweep checks, besides what the reference says, that nobody dies while
// activity from before the deadline waits in the feed.
//
// Activity appended while the clock was behind the feed is let off: an entry is
// never stamped earlier than the one ahead of it, so a clock that was set back
// hides from the watermark how early it came.
func (m *machine) sweep() bool {
	waits := map[string]bool{}
	for shard, f := range m.ref.feeds {
		for _, e := range f[m.ref.acked[shard]:] {
			s := m.ref.sessions[e.session]
			if m.ref.grouped && s != nil && s.over == 0 && e.typ == "input:text" && e.at < s.expire && e.appended == e.at && m.now <= s.expire+m.ref.settle {
				waits[e.session] = true
			}
		}
	}
	expired := m.ref.sweep(m.now)
	res, err := m.ms.Sweep(m.Context())
	m.ok(err)
	if res.Expired != len(expired) {
		m.Fatalf("at +%d, swept %d sessions, want %d", m.now-ModelStart, res.Expired, len(expired))
	}
	for _, g := range m.sessions() {
		if waits[g.GetId()] && g.GetPhase() == sessionv1.Session_EXPIRED && g.GetEndTime() != nil {
			m.Fatalf("at +%d, %s dies with activity in the feed", m.now-ModelStart, g.GetId())
		}
	}
	return true
}

// pass lets time go by, often to about a deadline.
func (m *machine) pass() bool {
	by := int64(rapid.SampledFrom([]int{1, 50, 400, 1500, 4000, 11_000, 25_000}).Draw(m.T, "ms"))
	if s := m.pick(); s != nil && rapid.Bool().Draw(m.T, "to a deadline") {
		by = max(1, s.expire-m.now+int64(rapid.IntRange(-2, 2).Draw(m.T, "off")))
	}
	m.now += by
	m.ms.SetClock(m.now)
	return true
}

// back sets the clock back a little, as when it is corrected.
func (m *machine) back() bool {
	m.now -= int64(rapid.IntRange(1, 300).Draw(m.T, "ms"))
	m.ms.SetClock(m.now)
	return true
}

// look reads in every way there is. None may change anything, not even what a
// session is remembered for.
func (m *machine) look() bool {
	s := m.pick()
	if s == nil {
		return false
	}
	before, why := m.sessions(), m.explain(s.id)
	q := storage.EventQuery{SessionID: s.id, Tail: 10, Limit: 10}
	log, err := m.ms.ListEvents(m.Context(), q)
	m.ok(err)
	_, err = m.ms.List(m.Context(), storage.ListQuery{Project: s.project, Limit: 10})
	m.ok(err)
	_, err = m.ms.ActiveUsers(m.Context(), storage.ListQuery{Limit: 10})
	m.ok(err)
	_, err = m.ms.Census(m.Context())
	m.ok(err)
	_, err = m.ms.Groups(m.Context())
	m.ok(err)
	m.ok(m.ms.Status(m.Context()).Err)
	_, err = m.ms.Get(m.Context(), s.id)
	m.ok(err)
	for i, g := range m.sessions() {
		if !proto.Equal(g, before[i]) {
			m.Fatalf("at +%d, reading changed\n%v to\n%v", m.now-ModelStart, before[i], g)
		}
	}
	if now := m.explain(s.id); now != why {
		m.Fatalf("reading changed what is remembered of %s: %s, was %s", s.id, now, why)
	}
	again, err := m.ms.ListEvents(m.Context(), q)
	m.ok(err)
	if again.Next != log.Next {
		m.Fatalf("reading wrote to the log of %s", s.id)
	}
	return true
}

func (m *machine) explain(id string) string {
	x, err := m.ms.Explain(m.Context(), id)
	m.ok(err)
	return fmt.Sprint(x.Kind, x.Counts, len(x.Decisions))
}

func (m *machine) end() bool {
	s := m.pick()
	if s == nil {
		return false
	}
	_, err := m.ms.End(m.Context(), s.id, "done")
	m.ok(err)
	if s.over == 0 && m.now < s.expire {
		m.ref.end(s, sessionv1.Session_ENDED, storage.TypeEnded, m.now)
	}
	return true
}

func (m *machine) remove() bool {
	s := m.pick()
	if s == nil || rapid.IntRange(0, 2).Draw(m.T, "really") > 0 {
		return false
	}
	m.ok(m.ms.Delete(m.Context(), s.id))
	m.ref.append(s, storage.TypeDeleted, m.now)
	delete(m.ref.sessions, s.id)
	return true
}

// restart must change nothing but that what was not acknowledged comes again.
func (m *machine) restart() bool {
	if m.ms.Restart == nil {
		return false
	}
	if m.reader != nil {
		m.ok(m.reader.Close())
	}
	m.ms.Store = m.ms.Restart()
	if m.reader != nil {
		m.join()
	}
	return true
}
