package redis

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// row is what the fields of a session hold, nil where there is none, in the
// order of sessionFields.
type row [12][]byte

// parseRow reads the answer to fetch as it came over the wire: a list of strings
// and nulls, in the version 2 or 3 of the protocol. The fields share its memory.
func parseRow(raw []byte) (row, error) {
	var out row
	line, raw, _ := bytes.Cut(raw, crlf)
	if string(line) != "*"+strconv.Itoa(len(out)) {
		return out, fmt.Errorf("%w: list of %q", errReply, line)
	}
	for i := range out {
		if line, raw, _ = bytes.Cut(raw, crlf); len(line) == 0 {
			return out, fmt.Errorf("%w: ends at field %d", errReply, i)
		}
		if line[0] == '_' || string(line) == "$-1" {
			continue
		}
		n := number(line[1:])
		if line[0] != '$' || n < 0 || n > int64(len(raw)-len(crlf)) {
			return out, fmt.Errorf("%w: field %d is %q", errReply, i, line)
		}
		out[i], raw = raw[:n:n], raw[n+int64(len(crlf)):]
	}
	return out, nil
}

var (
	crlf     = []byte("\r\n")
	errReply = errors.New("malformed answer of Redis")
)

// number reads a decimal number; what is none is 0.
func number(text []byte) int64 {
	n, _ := strconv.ParseInt(string(text), 10, 64) // takes no memory for it
	return n
}

// decodeLabels reads what encodeLabels has written. By itself proto takes the
// slow way of reflection for maps.
func decodeLabels(raw []byte) (map[string]string, error) {
	if len(raw) == 0 {
		return nil, nil //nolint:nilnil // no labels
	}
	labels := map[string]string{}
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
