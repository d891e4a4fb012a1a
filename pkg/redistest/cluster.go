package redistest

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// reshardTimeout bounds one run of redis-cli --cluster reshard.
const reshardTimeout = 60 * time.Second

// SlotOf returns the slot of a key.
func (c *Cluster) SlotOf(t testing.TB, key string) int {
	t.Helper()
	for _, n := range c.Nodes {
		if reply, err := command(t.Context(), n.Addr, "CLUSTER", "KEYSLOT", key); err == nil {
			slot, _ := reply.(int64)
			return int(slot)
		}
	}
	t.Fatal("no node answers")
	return 0
}

// Node returns the process at an address.
func (c *Cluster) Node(t testing.TB, addr string) *Server {
	t.Helper()
	for _, n := range c.Nodes {
		if n.Addr == addr {
			return n
		}
	}
	t.Fatalf("%s is no node of the cluster", addr)
	return nil
}

// Masters returns the addresses of the masters that own slots, by their first
// slot.
func (c *Cluster) Masters(t testing.TB) []string {
	t.Helper()
	var owners []*member
	for _, m := range c.anyView(t) {
		if m.isMaster() && len(m.slots) > 0 {
			owners = append(owners, m)
		}
	}
	slices.SortFunc(owners, func(a, b *member) int { return a.slots[0] - b.slots[0] })
	out := make([]string, len(owners))
	for i, m := range owners {
		out[i] = m.addr
	}
	return out
}

// MasterOf returns the address of the master of a slot, once every reachable
// node names the same one.
func (c *Cluster) MasterOf(t testing.TB, slot int) (addr string) {
	t.Helper()
	await(t, fmt.Sprintf("the nodes agree on the master of slot %d", slot), func() (err error) {
		addr, err = c.agreedMaster(t.Context(), slot)
		return err
	})
	return addr
}

// SlotsOf returns the slots of a master in ascending order, as it sees it.
func (c *Cluster) SlotsOf(t testing.TB, master string) []int {
	t.Helper()
	return c.self(t, master).slots
}

// ReplicaOf returns the address of a replica of a master that is in sync.
func (c *Cluster) ReplicaOf(t testing.TB, master string) (addr string) {
	t.Helper()
	await(t, "a replica of "+master+" is in sync", func() error {
		views, err := c.views(t.Context())
		if err != nil {
			return err
		}
		id := ""
		if m := memberIn(views[master], master); m != nil {
			id = m.id
		}
		errs := []error{fmt.Errorf("%s has no replica", master)}
		for _, m := range views[master] {
			if m.masterID == id && id != "" && !m.failed {
				err := checkSynced(t.Context(), m.addr)
				if err == nil {
					addr = m.addr
					return nil
				}
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return addr
}

// Reshard is how redis-cli moves slots. The zero value is its default.
type Reshard struct {
	// Pipeline is how many keys one MIGRATE moves; 10 where 0. The fewer, the
	// longer the keys of a slot are on two nodes.
	Pipeline int
}

// Reshard moves slots from one master to another, those with the lowest numbers
// first, and waits until the nodes agree. It returns what redis-cli printed.
func (c *Cluster) Reshard(t testing.TB, from, to string, slots int, how Reshard) string {
	t.Helper()
	moved := c.SlotsOf(t, from)
	if len(moved) < slots || slots < 1 {
		t.Fatalf("%s owns %d slots: cannot move %d", from, len(moved), slots)
	}
	moved = moved[:slots]
	args := []string{
		"--cluster", "reshard", from, "--cluster-from", c.self(t, from).id, "--cluster-to", c.self(t, to).id,
		"--cluster-slots", strconv.Itoa(slots), "--cluster-yes",
	}
	if how.Pipeline > 0 {
		args = append(args, "--cluster-pipeline", strconv.Itoa(how.Pipeline))
	}
	ctx, cancel := context.WithTimeout(t.Context(), reshardTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "redis-cli", args...).CombinedOutput()
	if err != nil || ctx.Err() != nil {
		t.Fatalf("redis-cli %v: %v\n%s", args, errors.Join(err, ctx.Err()), tailOf(string(out)))
	}
	// redis-cli may exit with 0 after an error.
	for _, mark := range []string{"BUSYKEY", "[ERR]", "*** "} {
		if strings.Contains(string(out), mark) {
			t.Fatalf("redis-cli %v printed %s:\n%s", args, mark, tailOf(string(out)))
		}
	}
	await(t, "the nodes agree on the slots that moved", func() error {
		for _, slot := range []int{moved[0], moved[len(moved)/2], moved[len(moved)-1]} {
			if addr, err := c.agreedMaster(t.Context(), slot); err != nil || addr != to {
				return fmt.Errorf("slot %d belongs to %q, want %s: %w", slot, addr, to, err)
			}
		}
		return nil
	})
	return string(out)
}

// tailOf keeps the end of an output, which has a line for each slot.
func tailOf(out string) string { return out[max(0, len(out)-2000):] }

// OpenSlot marks a slot as migrating at its master and as importing at another
// one: the first step of a move by hand.
func (c *Cluster) OpenSlot(t testing.TB, slot int, from, to string) {
	t.Helper()
	c.setSlot(t, to, slot, "IMPORTING", c.self(t, from).id)
	c.setSlot(t, from, slot, "MIGRATING", c.self(t, to).id)
}

// KeysInSlot lists the keys of a slot that are on a node, sorted.
func (c *Cluster) KeysInSlot(t testing.TB, node string, slot int) []string {
	t.Helper()
	reply, err := command(t.Context(), node, "CLUSTER", "GETKEYSINSLOT", strconv.Itoa(slot), "1000000")
	if err != nil {
		t.Fatal(err)
	}
	items, _ := reply.([]any)
	keys := make([]string, len(items))
	for i, k := range items {
		keys[i], _ = k.(string)
	}
	slices.Sort(keys)
	return keys
}

// MigrateKeys moves keys of an open slot one after the other. A key that is gone
// is no error. BUSYKEY is: something has written the key on the importing node.
func (c *Cluster) MigrateKeys(t testing.TB, from, to string, keys ...string) error {
	t.Helper()
	return migrate(t.Context(), from, to, keys)
}

// ReplaceKeys is MigrateKeys that overwrites what the importing node has: the
// way out after BUSYKEY.
func (c *Cluster) ReplaceKeys(t testing.TB, from, to string, keys ...string) {
	t.Helper()
	if err := migrate(t.Context(), from, to, keys, "REPLACE"); err != nil {
		t.Fatal(err)
	}
}

func migrate(ctx context.Context, from, to string, keys []string, options ...string) error {
	host, port, _ := strings.Cut(to, ":")
	for _, k := range keys {
		args := append([]string{"MIGRATE", host, port, "", "0", "5000"}, options...)
		if _, err := command(ctx, from, append(args, "KEYS", k)...); err != nil {
			return err
		}
	}
	return nil
}

// FinishSlot assigns an open slot to the node that imported it: there first, then
// at the source, then at the other masters, so that no node ever redirects to one
// that does not own it. All keys must have moved. It waits until all nodes know of
// the claim: else that of the next slot to move could have the same epoch, and one
// of the two would be lost.
func (c *Cluster) FinishSlot(t testing.TB, slot int, from, to string) {
	t.Helper()
	id := c.self(t, to).id
	nodes := []string{to, from}
	for _, m := range c.Masters(t) {
		if m != to && m != from {
			nodes = append(nodes, m)
		}
	}
	for _, n := range nodes {
		c.setSlot(t, n, slot, "NODE", id)
	}
	c.AwaitMaster(t, slot, to)
	await(t, "every node knows the epochs of all masters", func() error { return c.checkEpochs(t.Context()) })
}

func (c *Cluster) setSlot(t testing.TB, node string, slot int, state, id string) {
	t.Helper()
	if _, err := command(t.Context(), node, "CLUSTER", "SETSLOT", strconv.Itoa(slot), state, id); err != nil {
		t.Fatal(err)
	}
}

// AwaitMaster waits until every reachable node names a node as master of a slot.
func (c *Cluster) AwaitMaster(t testing.TB, slot int, addr string) {
	t.Helper()
	await(t, fmt.Sprintf("every node has %s as master of slot %d", addr, slot), func() error {
		is, err := c.agreedMaster(t.Context(), slot)
		if err == nil && is != addr {
			err = fmt.Errorf("it is %s", is)
		}
		return err
	})
}

// AwaitSuccessor waits until every reachable node has another master of a slot
// than a dead one, and returns its address.
func (c *Cluster) AwaitSuccessor(t testing.TB, slot int, dead string) (addr string) {
	t.Helper()
	await(t, "a replica of "+dead+" is promoted", func() (err error) {
		if addr, err = c.agreedMaster(t.Context(), slot); err == nil && addr == dead {
			err = fmt.Errorf("%s is still the master of slot %d", dead, slot)
		}
		return err
	})
	return addr
}

// Failover promotes a replica in agreement with its master, which loses nothing,
// and waits until every node agrees and the former master follows in sync.
func (c *Cluster) Failover(t testing.TB, replica string) {
	t.Helper()
	v := c.anyView(t)
	was := memberIn(v, replica)
	if was == nil || was.masterID == "" {
		t.Fatalf("%s is not a replica", replica)
	}
	var master *member
	for _, m := range v {
		if m.id == was.masterID {
			master = m
		}
	}
	if master == nil || len(master.slots) == 0 {
		t.Fatalf("the master of %s owns no slot", replica)
	}
	asked := time.Time{}
	await(t, replica+" is promoted", func() error {
		if err := checkSynced(t.Context(), master.addr); err == nil {
			is, err := c.agreedMaster(t.Context(), master.slots[0])
			if err == nil && is != replica {
				err = fmt.Errorf("the master is %s", is)
			}
			return err
		}
		// A failover that is not done within 5 s is given up by the replica.
		if time.Since(asked) > 6*time.Second {
			asked = time.Now()
			if _, err := command(t.Context(), replica, "CLUSTER", "FAILOVER"); err != nil {
				return err
			}
		}
		return fmt.Errorf("%s is still a master", master.addr)
	})
}

// Misplaced lists what is not where it belongs: keys in the slots of the given
// keys on masters that do not own the slot, and every slot left open.
func (c *Cluster) Misplaced(t testing.TB, keys ...string) (wrong []string) {
	t.Helper()
	slots := map[int]string{}
	for _, k := range keys {
		slots[c.SlotOf(t, k)] = k
	}
	for _, m := range c.anyView(t) {
		if !m.isMaster() {
			continue
		}
		master, self := m.addr, c.self(t, m.addr)
		for _, open := range self.open {
			wrong = append(wrong, fmt.Sprintf("%s has an open slot: %s", master, open))
		}
		for slot, key := range slots {
			if slices.Contains(self.slots, slot) {
				continue
			}
			if here := c.KeysInSlot(t, master, slot); len(here) > 0 {
				wrong = append(wrong, fmt.Sprintf("%s does not own slot %d of %s, and has %d keys of it: %q",
					master, slot, key, len(here), here[:min(5, len(here))]))
			}
		}
	}
	slices.Sort(wrong)
	return wrong
}

// CountErrors returns how often the nodes have replied with an error of a code,
// such as ASK, MOVED or TRYAGAIN, since they started.
func (c *Cluster) CountErrors(t testing.TB, code string) (n int) {
	t.Helper()
	for _, s := range c.Nodes {
		info, err := text(t.Context(), s.Addr, "INFO", "errorstats")
		if err != nil {
			continue // a node that is down
		}
		if _, rest, ok := strings.Cut(info, "errorstat_"+code+":count="); ok {
			count, _, _ := strings.Cut(rest, "\r")
			more, err := strconv.Atoi(count)
			if err != nil {
				t.Fatal(err)
			}
			n += more
		}
	}
	return n
}

// anyView returns the cluster as the first node that answers sees it.
func (c *Cluster) anyView(t testing.TB) []*member {
	t.Helper()
	var errs []error
	for _, n := range c.Nodes {
		v, err := view(t.Context(), n.Addr)
		if err == nil {
			return v
		}
		errs = append(errs, err)
	}
	t.Fatalf("no node answers: %v", errors.Join(errs...))
	return nil
}

// self returns a node as it sees itself.
func (c *Cluster) self(t testing.TB, addr string) *member {
	t.Helper()
	v, err := view(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range v {
		if m.self {
			return m
		}
	}
	t.Fatalf("%s does not list itself", addr)
	return nil
}
