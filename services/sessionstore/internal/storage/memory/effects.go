package memory

import (
	"encoding/binary"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
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
