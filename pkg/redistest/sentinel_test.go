package redistest

import "testing"

func TestSentinelFailsOver(t *testing.T) {
	s := StartSentinel(t, SentinelOptions{Password: "data-secret", SentinelPassword: "sentinel-secret"})
	ask := func(n *Server, args ...string) string {
		t.Helper()
		out, err := textAs(t.Context(), n.Addr, "data-secret", args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first, second := s.Servers[0], s.Servers[1]
	if m, err := s.Master(t.Context()); err != nil || m != first {
		t.Fatalf("the master is %v, %v, want %s", m, err, first.Addr)
	}
	ask(first, "SET", "k", "v")
	s.Failover(t)
	if m, _ := s.AwaitPromotion(t, first); m != second {
		t.Fatalf("%s was promoted, want %s", m.Addr, second.Addr)
	}
	if m := s.AwaitMaster(t, first); m != second {
		t.Fatalf("the master is %s, want %s", m.Addr, second.Addr)
	}
	s.AwaitReplica(t, first)
	if got := ask(second, "GET", "k"); got != "v" {
		t.Errorf("after the planned failover k is %q, want v", got)
	}
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	if m := s.AwaitMaster(t, second); m != first {
		t.Errorf("after the kill the master is %s, want %s", m.Addr, first.Addr)
	}
	if got := ask(first, "GET", "k"); got != "v" {
		t.Errorf("after the kill k is %q, want v", got)
	}
	if _, err := text(t.Context(), s.Sentinels[0].Addr, "SENTINEL", "MASTERS"); err == nil {
		t.Error("a Sentinel with a password answers without")
	}
}
