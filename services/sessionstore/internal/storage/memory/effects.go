package memory

import (
	"encoding/binary"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

var errMalformed = errors.New("malformed effect")

// eachEffect calls fn for every effect of a record.
func eachEffect(record []byte, fn func(kind byte, f fields) error) error {
	for len(record) > 0 {
		kind := record[0]
		size, n := binary.Uvarint(record[1:])
		if n <= 0 || size > uint64(len(record)-1-n) {
			return errMalformed
		}
		body := record[1+n : 1+n+int(size)]
		record = record[1+n+int(size):]
		f, err := parseFields(body)
		if err != nil {
			return err
		}
		if err := fn(kind, f); err != nil {
			return err
		}
	}
	return nil
}

// effectSize returns the length of the first of some well-formed effects.
func effectSize(b []byte) int {
	size, n := binary.Uvarint(b[1:])
	return 1 + n + int(size)
}

// fields are the decoded fields of an effect.
type fields struct {
	nums  map[protowire.Number]int64
	blobs map[protowire.Number][][]byte
}

func parseFields(b []byte) (fields, error) {
	f := fields{nums: map[protowire.Number]int64{}, blobs: map[protowire.Number][][]byte{}}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return f, errMalformed
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return f, errMalformed
			}
			f.nums[num] = int64(v)
			b = b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return f, errMalformed
			}
			f.blobs[num] = append(f.blobs[num], v)
			b = b[n:]
		default:
			return f, errMalformed
		}
	}
	return f, nil
}

func (f fields) has(n protowire.Number) bool {
	_, ok := f.nums[n]
	return ok
}

func (f fields) num(n protowire.Number) int64    { return f.nums[n] }
func (f fields) all(n protowire.Number) [][]byte { return f.blobs[n] }

func (f fields) bytes(n protowire.Number) []byte {
	if v := f.blobs[n]; len(v) > 0 {
		return v[len(v)-1]
	}
	return nil
}

func (f fields) text(n protowire.Number) string { return string(f.bytes(n)) }

func (tx *txn) add(kind byte, body []byte) {
	tx.buf = append(tx.buf, kind)
	tx.buf = binary.AppendUvarint(tx.buf, uint64(len(body)))
	tx.buf = append(tx.buf, body...)
}

func (tx *txn) durable() bool { return tx.store.log != nil }

func (tx *txn) put(x *session) {
	if tx.durable() {
		tx.add(effectPut, encodeSession(x, true))
	}
}

func (tx *txn) hot(x *session) {
	if tx.durable() {
		tx.add(effectHot, encodeSession(x, false))
	}
}

func (tx *txn) remove(id string) {
	if tx.durable() {
		tx.add(effectRemove, field(nil, 1, id))
	}
}

func (tx *txn) logAt(x *session) {
	if tx.durable() {
		tx.add(effectLogAt, field(field(nil, 1, x.view.GetId()), 2, x.log.trimmed.String()))
	}
}

// gone with the time 0 takes it back.
func (tx *txn) gone(id string, until int64) {
	if tx.durable() {
		tx.add(effectGone, number(field(nil, 1, id), 2, until))
	}
}

func (tx *txn) late(sh *shard) {
	if l := sh.feed.late; tx.durable() && l != (late{}) {
		tx.add(effectLate, field(number(number(nil, 2, int64(sh.n)), 4, l.from), 3, l.to.String()))
	}
}

func (tx *txn) hold(holder string, from int64) {
	if tx.durable() {
		tx.add(effectHold, number(field(nil, 1, holder), 2, from))
	}
}

func (tx *txn) event(x *session, e *sessionv1.Event) {
	if tx.durable() {
		tx.add(effectEvent, message(field(nil, 1, x.view.GetId()), 2, e))
	}
}

func (tx *txn) feed(e *sessionv1.FeedEntry) {
	if tx.durable() {
		tx.add(effectFeed, message(nil, 1, e))
	}
}

func (tx *txn) acked(group string, at storage.Cursor) {
	if tx.durable() {
		tx.add(effectAcked, field(number(field(nil, 1, group), 2, int64(tx.shard.n)), 3, at.String()))
	}
}

func (tx *txn) policy(p *sessionv1.ProjectPolicy) {
	if tx.durable() {
		tx.add(effectPolicy, message(nil, 1, p))
	}
}

func field(b []byte, n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

func number(b []byte, n protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), uint64(v))
}

func message(b []byte, n protowire.Number, m interface{ MarshalVT() ([]byte, error) }) []byte {
	raw, err := m.MarshalVT()
	if err != nil {
		raw = nil // no message of ours can fail
	}
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), raw)
}
