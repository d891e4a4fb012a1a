package journal

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	journalv1 "github.com/livinguniverse/stoker/proto/gen/stoker/journal/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// accepted is one write that was accepted.
type accepted struct {
	seq   int64
	write storage.Write
	// base is what was known of the session before its first write that waits;
	// nil where that created it, and with later ones.
	base *sessionv1.Session
	// start is the cursor that the events accepted of the session come after;
	// with its first write only.
	start string
	// size is how many bytes it takes on disk.
	size int64
	// done: it was replayed, or is a dead letter. Guarded by waiting.mu.
	done bool
}

// encode spells the record.
func (a *accepted) encode() ([]byte, error) {
	w := a.write
	out := &journalv1.Accepted{Seq: a.seq, SessionId: w.SessionID, At: w.At.UnixMilli(), Base: a.base, BaseCursor: a.start, Cursor: w.Cursor}
	switch {
	case w.Create != nil:
		out.Write = &journalv1.Accepted_Create{Create: &journalv1.Create{Session: w.Create.Session, RequestKey: w.Create.RequestKey}}
	case w.Update != nil:
		u := w.Update
		out.Write = &journalv1.Accepted_Update{Update: &journalv1.Update{
			WriteId: u.WriteID, IfRevision: u.IfRevision, ReplaceLabels: u.ReplaceLabels, SetLabels: u.SetLabels,
			DeleteLabels: u.DeleteLabels, MaxLabels: int32(u.MaxLabels), SetData: u.SetData, Data: u.Data,
		}}
	case w.End != nil:
		out.Write = &journalv1.Accepted_End{End: &journalv1.End{Reason: w.End.Reason}}
	case w.Delete:
		out.Write = &journalv1.Accepted_Delete{Delete: &journalv1.Delete{}}
	case w.Extend != nil:
		x := w.Extend
		out.Write = &journalv1.Accepted_Extend{Extend: &journalv1.Extend{
			Time: x.Time.UnixMilli(), Kind: x.Kind, EventId: x.EventID, Traceparent: x.Traceparent, Counts: x.Counts,
		}}
	default:
		out.Write = &journalv1.Accepted_Append{Append: &journalv1.Append{Events: w.Append}}
	}
	return encode(&journalv1.Record{Kind: &journalv1.Record_Accepted{Accepted: out}})
}

func decode(in *journalv1.Accepted) (*accepted, error) {
	a := &accepted{
		seq: in.GetSeq(), base: in.GetBase(), start: in.GetBaseCursor(),
		write: storage.Write{SessionID: in.GetSessionId(), At: time.UnixMilli(in.GetAt()), Cursor: in.GetCursor()},
	}
	switch w := in.GetWrite().(type) {
	case *journalv1.Accepted_Create:
		a.write.Create = &storage.CreateWrite{Session: w.Create.GetSession(), RequestKey: w.Create.GetRequestKey()}
	case *journalv1.Accepted_Update:
		u := w.Update
		a.write.Update = &storage.Update{
			WriteID: u.GetWriteId(), IfRevision: u.GetIfRevision(), ReplaceLabels: u.GetReplaceLabels(), SetLabels: u.GetSetLabels(),
			DeleteLabels: u.GetDeleteLabels(), MaxLabels: int(u.GetMaxLabels()), SetData: u.GetSetData(), Data: u.GetData(),
		}
	case *journalv1.Accepted_End:
		a.write.End = &storage.EndWrite{Reason: w.End.GetReason()}
	case *journalv1.Accepted_Delete:
		a.write.Delete = true
	case *journalv1.Accepted_Extend:
		x := w.Extend
		a.write.Extend = &storage.Activity{
			SessionID: in.GetSessionId(), Time: time.UnixMilli(x.GetTime()), Kind: x.GetKind(), EventID: x.GetEventId(),
			Traceparent: x.GetTraceparent(), Counts: x.GetCounts(),
		}
	case *journalv1.Accepted_Append:
		a.write.Append = w.Append.GetEvents()
	default:
		return nil, fmt.Errorf("write %d of an unknown kind: written by a newer version", in.GetSeq())
	}
	return a, nil
}

func holderRecord(name string) ([]byte, error) {
	return encode(&journalv1.Record{Kind: &journalv1.Record_Holder{Holder: name}})
}

func doneRecord(seq int64) ([]byte, error) {
	return encode(&journalv1.Record{Kind: &journalv1.Record_Done{Done: seq}})
}

func deadRecord(seq int64, reason string) ([]byte, error) {
	return encode(&journalv1.Record{Kind: &journalv1.Record_Dead{Dead: &journalv1.Dead{Seq: seq, Reason: strings.ToValidUTF8(reason, "?")}}})
}

func encode(r *journalv1.Record) ([]byte, error) {
	b, err := r.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("journal record: %w", err)
	}
	return b, nil
}

// operation names a write as its RPC does.
func operation(w storage.Write) string {
	switch {
	case w.Create != nil:
		return "CreateSession"
	case w.Update != nil:
		return "UpdateSession"
	case w.End != nil:
		return "EndSession"
	case w.Delete:
		return "DeleteSession"
	case w.Extend != nil:
		return "ExtendTTL"
	default:
		return "AppendEvents"
	}
}

// contents is what a journal's directory holds.
type contents struct {
	holder   string
	accepted map[int64]*accepted
	done     map[int64]bool
	dead     map[int64]string
}

func newContents() *contents {
	return &contents{accepted: map[int64]*accepted{}, done: map[int64]bool{}, dead: map[int64]string{}}
}

// add takes one record, which may have come before.
func (c *contents) add(record []byte) error {
	r := &journalv1.Record{}
	if err := proto.Unmarshal(record, r); err != nil {
		return err
	}
	switch k := r.GetKind().(type) {
	case *journalv1.Record_Holder:
		c.holder = k.Holder
	case *journalv1.Record_Accepted:
		a, err := decode(k.Accepted)
		if err != nil {
			return err
		}
		a.size = int64(len(record))
		c.accepted[a.seq] = a
	case *journalv1.Record_Done:
		c.done[k.Done] = true
	case *journalv1.Record_Dead:
		c.dead[k.Dead.GetSeq()] = k.Dead.GetReason()
	default:
		return errors.New("record of an unknown kind: written by a newer version")
	}
	return nil
}

// left says whether a write is still to be replayed.
func (c *contents) left(seq int64) bool {
	_, dead := c.dead[seq]
	return !c.done[seq] && !dead
}

// sorted returns the accepted writes in their order.
func (c *contents) sorted() []*accepted {
	out := make([]*accepted, 0, len(c.accepted))
	for _, seq := range slices.Sorted(maps.Keys(c.accepted)) {
		out = append(out, c.accepted[seq])
	}
	return out
}

// extends says whether a write was acknowledged as an extension: only then does a
// report have the cursor of an event.
func extends(w storage.Write) bool { return w.Extend != nil && w.Cursor != "" }

// speaksOf is the earliest time that a write is about.
func speaksOf(w storage.Write) time.Time {
	if w.Extend != nil && w.Extend.Time.Before(w.At) {
		return w.Extend.Time
	}
	return w.At
}
