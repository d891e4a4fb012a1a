package redis

import (
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// row is what the fields of a session hold, in the order of sessionFields. None
// of those that matter is ever empty, so an empty one is one that is not there.
type row [13]string

var errReply = errors.New("malformed answer of Redis")

// number reads a decimal number; what is none is 0.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// decodeLabels reads what encodeLabels has written. By itself proto takes the
// slow way of reflection for maps.
func decodeLabels(stored string) (map[string]string, error) {
	if stored == "" {
		return nil, nil //nolint:nilnil // no labels
	}
	labels, raw := map[string]string{}, []byte(stored)
	for len(raw) > 0 {
		field, entry, n := bytesField(raw)
		if n < 0 || field != labelsField {
			return nil, fmt.Errorf("stored labels: %w", errReply)
		}
		raw = raw[n:]
		var pair [3]string // by field: 1 is the key, 2 the value
		for len(entry) > 0 {
			field, text, n := bytesField(entry)
			if n < 0 || field < 1 || field > 2 {
				return nil, fmt.Errorf("stored labels: %w", errReply)
			}
			pair[field], entry = string(text), entry[n:]
		}
		labels[pair[1]] = pair[2]
	}
	return labels, nil
}

// labelsField is the number of Session.labels.
var labelsField = (&sessionv1.Session{}).ProtoReflect().Descriptor().Fields().ByName("labels").Number()

// bytesField reads a field that is bytes; n is how long it is, negative where it
// is no such field.
func bytesField(raw []byte) (field protowire.Number, value []byte, n int) {
	field, kind, n := protowire.ConsumeTag(raw)
	if n < 0 || kind != protowire.BytesType {
		return 0, nil, -1
	}
	value, m := protowire.ConsumeBytes(raw[n:])
	if m < 0 {
		return 0, nil, m
	}
	return field, value, n + m
}
