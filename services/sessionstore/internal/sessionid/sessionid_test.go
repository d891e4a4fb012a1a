package sessionid

import (
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for shard := range 64 {
		id := New(shard)
		if got, ok := Shard(id, 64); !ok || got != shard || len(id) != Len {
			t.Errorf("Shard(%q) = %d, %v, want %d", id, got, ok, shard)
		}
		if seen[id] {
			t.Errorf("%q twice", id)
		}
		seen[id] = true
	}
}

func TestMalformed(t *testing.T) {
	id := New(7)
	for _, bad := range []string{"", "x", id[1:], id + "a", strings.ToUpper(id), id[:28] + "1", "=" + id[1:], New(64)} {
		if _, ok := Shard(bad, 64); ok {
			t.Errorf("Shard(%q) is ok", bad)
		}
	}
}

// FuzzShard: whatever is accepted is the only spelling of itself.
func FuzzShard(f *testing.F) {
	f.Add(New(0))
	f.Add(New(63))
	f.Add("nonsense")
	f.Fuzz(func(t *testing.T, id string) {
		if _, ok := Shard(id, 1<<16); !ok {
			return
		}
		raw, err := encoding.DecodeString(id)
		if err != nil || encoding.EncodeToString(raw) != id {
			t.Errorf("%q is accepted, yet spelled %q", id, encoding.EncodeToString(raw))
		}
	})
}

func TestShardOf(t *testing.T) {
	if ShardOf("p", "u", "", 64) != ShardOf("p", "u", "request", 64) {
		t.Error("a user's sessions are on several shards")
	}
	first := ShardOf("p", "", "request", 64)
	if again := ShardOf("p", "", "request", 64); again != first {
		t.Error("a repeated anonymous request does not find its shard")
	}
	hit := map[int]bool{}
	for range 2000 {
		hit[ShardOf("p", "", "", 64)] = true
	}
	if len(hit) != 64 {
		t.Errorf("anonymous sessions use %d of 64 shards", len(hit))
	}
}
