// Package sessionid makes and reads session ids: the shard and 128 random
// bits, in 29 characters of lower-case base32, opaque to clients and URL-safe.
package sessionid

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"hash/fnv"
)

const (
	rawLen = 2 + 16
	// Len is the length of every id.
	Len = 29
)

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// New returns a fresh id on a shard, 0 to 65,535.
func New(shard int) string {
	var raw [rawLen]byte
	binary.BigEndian.PutUint16(raw[:2], uint16(shard))
	_, _ = rand.Read(raw[2:]) // never fails: crypto/rand ends the program instead
	return encoding.EncodeToString(raw[:])
}

// Shard returns the shard of an id; ok is false when the id is malformed or
// its shard is not under shards.
func Shard(id string, shards int) (shard int, ok bool) {
	if len(id) != Len {
		return 0, false
	}
	var raw [rawLen + 1]byte
	n, err := encoding.Decode(raw[:], []byte(id))
	if err != nil || n != rawLen || !canonicalTail(id[Len-1]) {
		return 0, false
	}
	shard = int(binary.BigEndian.Uint16(raw[:2]))
	return shard, shard < shards
}

// canonicalTail says whether the last character carries no bit beyond the
// 144 that an id has, so that no two spellings name one session.
func canonicalTail(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z':
		return (c-'a')&1 == 0
	case c >= '2' && c <= '7':
		return (c-'2'+26)&1 == 0
	default:
		return false
	}
}

// ShardOf returns the shard of a user's sessions in a project. An anonymous
// session (no user) is placed by its request key, so that a repeated request
// finds it, or at random without one.
func ShardOf(project, user, requestKey string, shards int) int {
	if user == "" && requestKey == "" {
		var b [8]byte
		_, _ = rand.Read(b[:])
		return int(binary.BigEndian.Uint64(b[:]) % uint64(shards))
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(project))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(user))
	if user == "" {
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(requestKey))
	}
	return int(h.Sum64() % uint64(shards))
}
