package redistest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// tagged is a key of the slot that these tests move.
const tagged = "{s2}"

// fill writes keys of that slot.
func fill(t *testing.T, c *Cluster, n int) (slot int, keys []string) {
	t.Helper()
	slot = c.SlotOf(t, tagged)
	owner := c.MasterOf(t, slot)
	for i := range n {
		// redis-cli could not name this key.
		k := fmt.Sprintf("k\x00%03d%s", i, tagged)
		if _, err := command(t.Context(), owner, "SET", k, "v"); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return slot, keys
}

func TestReshardMovesTheLowestSlots(t *testing.T) {
	c := StartCluster(t, 3)
	masters := c.Masters(t)
	if len(masters) != 3 {
		t.Fatalf("masters %v, want 3", masters)
	}
	slot, keys := fill(t, c, 30)
	from := c.MasterOf(t, slot)
	to := masters[(slices.Index(masters, from)+1)%3]
	n := slices.Index(c.SlotsOf(t, from), slot) + 1
	out := c.Reshard(t, from, to, n, Reshard{Pipeline: 1})
	if !strings.Contains(out, fmt.Sprint("Moving slot ", slot)) {
		t.Errorf("redis-cli printed nothing of slot %d", slot)
	}
	if got := c.MasterOf(t, slot); got != to {
		t.Errorf("slot %d belongs to %s, want %s", slot, got, to)
	}
	if got := c.KeysInSlot(t, to, slot); !slices.Equal(got, keys) {
		t.Errorf("keys %q, want %q", got, keys)
	}
	if wrong := c.Misplaced(t, tagged); len(wrong) > 0 {
		t.Error(wrong)
	}
}

func TestSlotMovesStepByStep(t *testing.T) {
	c := StartCluster(t, 3) // redis-cli makes none with fewer
	slot, keys := fill(t, c, 4)
	masters := c.Masters(t)
	from, to := masters[0], masters[1]
	if c.MasterOf(t, slot) != from {
		from, to = to, from
	}
	c.OpenSlot(t, slot, from, to)
	if err := c.MigrateKeys(t, from, to, keys[3], keys[1]); err != nil {
		t.Fatal(err)
	}
	if got := c.KeysInSlot(t, to, slot); !slices.Equal(got, []string{keys[1], keys[3]}) {
		t.Errorf("moved keys %q", got)
	}
	var refused replyError
	if _, err := command(t.Context(), from, "GET", keys[1]); !errors.As(err, &refused) || !strings.HasPrefix(string(refused), "ASK") {
		t.Errorf("reading a key that has moved: %v, want ASK", err)
	}
	if _, err := command(t.Context(), from, "MGET", keys[0], keys[1]); !errors.As(err, &refused) || !strings.HasPrefix(string(refused), "TRYAGAIN") {
		t.Errorf("reading keys of both nodes: %v, want TRYAGAIN", err)
	}
	if ask, again := c.CountErrors(t, "ASK"), c.CountErrors(t, "TRYAGAIN"); ask != 1 || again != 1 {
		t.Errorf("counted %d ASK and %d TRYAGAIN, want 1 and 1", ask, again)
	}
	// What a half-moved slot shows: the flags of both nodes and the moved keys.
	wrong := strings.Join(c.Misplaced(t, tagged), "\n")
	for _, want := range []string{"->-", "-<-", "has 2 keys"} {
		if !strings.Contains(wrong, want) {
			t.Errorf("misplaced:\n%s\nwant %q", wrong, want)
		}
	}
	if err := c.MigrateKeys(t, from, to, keys...); err != nil {
		t.Fatal(err)
	}
	c.FinishSlot(t, slot, from, to)
	if wrong := c.Misplaced(t, tagged); len(wrong) > 0 {
		t.Error(wrong)
	}
}

func TestMigrateReportsABusyKey(t *testing.T) {
	c := StartCluster(t, 3) // redis-cli makes none with fewer
	slot, keys := fill(t, c, 2)
	masters := c.Masters(t)
	from, to := masters[0], masters[1]
	if c.MasterOf(t, slot) != from {
		from, to = to, from
	}
	c.OpenSlot(t, slot, from, to)
	// As if a script had written it there without declaring it.
	if err := migrate(t.Context(), from, to, keys[:1], "COPY"); err != nil {
		t.Fatal(err)
	}
	if err := c.MigrateKeys(t, from, to, keys...); err == nil || !strings.Contains(err.Error(), "BUSYKEY") {
		t.Errorf("migrating a key that both nodes have: %v, want BUSYKEY", err)
	}
	c.ReplaceKeys(t, from, to, keys...)
	c.FinishSlot(t, slot, from, to)
	if wrong := c.Misplaced(t, tagged); len(wrong) > 0 {
		t.Error(wrong)
	}
}

func TestReplicasArePromoted(t *testing.T) {
	c := StartClusterWithReplicas(t, 3, 1)
	slot, keys := fill(t, c, 3)
	master := c.MasterOf(t, slot)
	replica := c.ReplicaOf(t, master)
	c.Failover(t, replica)
	if got := c.MasterOf(t, slot); got != replica {
		t.Fatalf("after the failover the master is %s, want %s", got, replica)
	}
	if got := c.ReplicaOf(t, replica); got != master {
		t.Errorf("the replica is %s, want the former master %s", got, master)
	}
	if err := c.Node(t, replica).Kill(); err != nil {
		t.Fatal(err)
	}
	if got := c.AwaitSuccessor(t, slot, replica); got != master {
		t.Errorf("after the kill the master is %s, want %s", got, master)
	}
	if got := c.KeysInSlot(t, master, slot); !slices.Equal(got, keys) {
		t.Errorf("keys %q, want %q", got, keys)
	}
}

func TestRepliesAreRead(t *testing.T) {
	s := Start(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"SET", "k", "a\x00\r\nb"}, `"OK"`},
		{[]string{"GET", "k"}, `"a\x00\r\nb"`},
		{[]string{"GET", "none"}, `<nil>`},
		{[]string{"STRLEN", "k"}, `5`},
		{[]string{"MGET", "k", "none"}, `[]interface {}{"a\x00\r\nb", interface {}(nil)}`},
		{[]string{"KEYS", "none*"}, `[]interface {}{}`},
	} {
		reply, err := command(t.Context(), s.Addr, c.args...)
		if got := fmt.Sprintf("%#v", reply); err != nil || got != c.want {
			t.Errorf("%q: %s %v, want %s", c.args, got, err, c.want)
		}
	}
	var refused replyError
	if _, err := command(t.Context(), s.Addr, "LPUSH", "k", "x"); !errors.As(err, &refused) || !strings.HasPrefix(string(refused), "WRONGTYPE") {
		t.Errorf("an error reply: %v", err)
	}
}

func TestClusterNodesAreParsed(t *testing.T) {
	got, err := parseNodes("aa 127.0.0.1:1@10001,host myself,master - 0 0 1 connected 0-2 7 [5->-bb]\n" +
		"bb 127.0.0.1:2@10002 slave,fail aa 0 0 1 disconnected\n")
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if m := got[0]; m.addr != "127.0.0.1:1" || !m.self || !m.isMaster() || !slices.Equal(m.slots, []int{0, 1, 2, 7}) || !slices.Equal(m.open, []string{"[5->-bb]"}) {
		t.Errorf("%+v", m)
	}
	if m := got[1]; m.isMaster() || !m.failed || m.linkConnected || m.masterID != "aa" {
		t.Errorf("%+v", m)
	}
	for _, bad := range []string{"short line\n", "aa a@1 master - 0 0 1 connected x-y\n"} {
		if _, err := parseNodes(bad); err == nil {
			t.Errorf("%q is parsed", bad)
		}
	}
}
