package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// dumpFile is where a server keeps its snapshot.
const dumpFile = "dump.rdb"

// TakeSnapshot makes a server save its data, and returns a copy of it. The server must
// have no password, and no append-only file: that would win over a snapshot.
func TakeSnapshot(t testing.TB, s *Server) []byte {
	t.Helper()
	if reply, err := text(t.Context(), s.Addr, "SAVE"); err != nil || reply != "OK" {
		t.Fatalf("SAVE: %q %v", reply, err)
	}
	dump, err := os.ReadFile(filepath.Join(s.Dir(), dumpFile))
	if err != nil {
		t.Fatal(err)
	}
	return dump
}

// RestoreSnapshot kills a server and starts it again on a snapshot, as after a
// restored backup.
func RestoreSnapshot(t testing.TB, s *Server, dump []byte) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), dumpFile), dump, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info := Info(t, s, "persistence"); info["aof_enabled"] != "0" {
		t.Fatal("the server has an append-only file, which wins over the snapshot")
	}
}

// Info returns the fields of a section of INFO.
func Info(t testing.TB, s *Server, section string) map[string]string {
	t.Helper()
	info, err := text(t.Context(), s.Addr, "INFO", section)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			out[name] = value
		}
	}
	return out
}

// InfoInt returns a field of a section of INFO that is a number.
func InfoInt(t testing.TB, s *Server, section, field string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(Info(t, s, section)[field], 10, 64)
	if err != nil {
		t.Fatalf("INFO %s, field %s: %v", section, field, err)
	}
	return n
}

// LimitMemory sets maxmemory to what the server uses now and some bytes more, which
// may be negative, under an eviction policy.
func LimitMemory(t testing.TB, s *Server, policy string, more int64) {
	t.Helper()
	set(t, s, "maxmemory-policy", policy)
	set(t, s, "maxmemory", strconv.FormatInt(max(1, InfoInt(t, s, "memory", "used_memory")+more), 10))
}

// UnlimitMemory undoes LimitMemory, but for the policy.
func UnlimitMemory(t testing.TB, s *Server) {
	t.Helper()
	set(t, s, "maxmemory", "0")
}

func set(t testing.TB, s *Server, name, value string) {
	t.Helper()
	if reply, err := text(t.Context(), s.Addr, "CONFIG", "SET", name, value); err != nil || reply != "OK" {
		t.Fatal(fmt.Errorf("CONFIG SET %s %s: %q %w", name, value, reply, err))
	}
}
