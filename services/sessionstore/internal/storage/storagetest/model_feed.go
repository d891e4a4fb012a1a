package storagetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// event appends something that counts as activity, or something that does not.
func (m *machine) event() bool {
	s := m.pick()
	if s == nil {
		return false
	}
	m.made++
	e := &sessionv1.Event{
		Id: fmt.Sprint("e", m.made), Type: rapid.SampledFrom([]string{"input:text", "input:text", "registry:updated"}).Draw(m.T, "type"),
		Time: lifetime.Time(m.now - int64(rapid.IntRange(0, 500).Draw(m.T, "age"))), Origin: sessionv1.Event_USER,
	}
	_, err := m.ms.Append(m.Context(), s.id, []*sessionv1.Event{e})
	if s.over != 0 || m.now >= s.expire {
		if !errors.Is(err, storage.ErrEnded) {
			m.Fatalf("appended to a session that is over: %v", err)
		}
		return true
	}
	m.ok(err)
	m.ref.append(s, e.GetType(), m.now)
	return true
}

// join makes the activity group, or comes back to it.
func (m *machine) join() {
	r, err := m.ms.OpenFeed(m.Context(), storage.ActivityGroup, "consumer")
	m.ok(err)
	m.ref.grouped = true
	m.reader = r
	m.inbox = [Shards][]*sessionv1.FeedEntry{}
}

// unread is how many entries there are to read.
func (m *machine) unread() int {
	n := 0
	for shard := range m.inbox {
		n += len(m.ref.feeds[shard]) - m.ref.acked[shard] - len(m.inbox[shard])
	}
	return n
}

// read takes entries from the feed: as many as there must be, in order.
func (m *machine) read() bool {
	if m.reader == nil || m.unread() == 0 {
		return false
	}
	m.take(rapid.IntRange(1, m.unread()).Draw(m.T, "entries"))
	return true
}

// take takes exactly so many entries.
func (m *machine) take(n int) {
	ctx, cancel := context.WithTimeout(m.Context(), 20*time.Second)
	defer cancel()
	for n > 0 {
		b, err := m.reader.Next(ctx, n)
		if err != nil {
			m.Fatalf("%d entries are missing: %v", n, err)
		}
		n -= len(b.Entries)
		for _, e := range b.Entries {
			shard := int(e.GetShard())
			at := m.ref.acked[shard] + len(m.inbox[shard])
			if at >= len(m.ref.feeds[shard]) {
				m.Fatalf("shard %d delivers %v, after all of its %d entries", shard, e, at)
			}
			want := m.ref.feeds[shard][at]
			if e.GetSessionId() != want.session || e.GetEvent().GetType() != want.typ || lifetime.Millis(e.GetAppendTime()) > want.appended {
				m.Fatalf("shard %d delivers %v, want %+v", shard, e, want)
			}
			m.inbox[shard] = append(m.inbox[shard], e)
			if at := fmt.Sprint(shard, e.GetCursor()); !m.seen[at] {
				m.seen[at] = true
				m.told[e.GetSessionId()+" "+e.GetEvent().GetType()]++
			}
		}
	}
}

func counts(e *sessionv1.FeedEntry) bool { return e.GetEvent().GetType() == "input:text" }

// report asks about an event that was read, whichever.
func (m *machine) report() bool {
	var waiting []*sessionv1.FeedEntry
	for _, box := range m.inbox {
		for _, e := range box {
			if counts(e) {
				waiting = append(waiting, e)
			}
		}
	}
	if len(waiting) == 0 {
		return false
	}
	m.reportOne(waiting[rapid.IntRange(0, len(waiting)-1).Draw(m.T, "entry")])
	return true
}

func (m *machine) reportOne(e *sessionv1.FeedEntry) {
	m.extend(storage.Activity{SessionID: e.GetSessionId(), Time: e.GetEvent().GetTime().AsTime(), Kind: "input", EventID: e.GetEvent().GetId()})
	m.reported[e.GetEvent().GetId()] = true
}

// ack acknowledges what needs no report any more, as the activity service does.
func (m *machine) ack() bool {
	var open []int
	for shard, box := range m.inbox {
		if len(box) > 0 {
			open = append(open, shard)
		}
	}
	return len(open) > 0 && m.ackShard(rapid.SampledFrom(open).Draw(m.T, "shard"))
}

func (m *machine) ackShard(shard int) bool {
	done := 0
	for _, e := range m.inbox[shard] {
		if counts(e) && !m.reported[e.GetEvent().GetId()] {
			break
		}
		done++
	}
	if done == 0 {
		return false
	}
	m.ok(m.reader.Ack(m.Context(), []storage.FeedAck{{Shard: shard, Cursor: m.inbox[shard][done-1].GetCursor()}}))
	m.inbox[shard] = m.inbox[shard][done:]
	m.ref.acked[shard] += done
	return true
}
