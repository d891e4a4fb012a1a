package redistest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// awaitTimeout bounds how long a cluster may take to form, and its nodes to agree
// on a change.
const awaitTimeout = 20 * time.Second

// member is a node as a line of CLUSTER NODES describes it.
type member struct {
	id, addr string
	// masterID is empty for a master.
	masterID      string
	self, failed  bool
	slots         []int
	open          []string
	linkConnected bool
	// epoch is that of its claim to its slots: the highest wins.
	epoch string
}

func (m *member) isMaster() bool { return m.masterID == "" && !m.failed }

// parseNodes reads the reply to CLUSTER NODES.
func parseNodes(reply string) ([]*member, error) {
	var out []*member
	for line := range strings.Lines(reply) {
		f := strings.Fields(line)
		if len(f) < 8 {
			return nil, fmt.Errorf("CLUSTER NODES: line %q has %d fields, want at least 8", line, len(f))
		}
		addr, _, _ := strings.Cut(f[1], "@")
		flags := strings.Split(f[2], ",")
		m := &member{
			id: f[0], addr: addr, self: slices.Contains(flags, "myself"),
			failed:        slices.Contains(flags, "fail") || slices.Contains(flags, "fail?") || slices.Contains(flags, "noaddr"),
			epoch:         f[6],
			linkConnected: f[7] == "connected",
		}
		if !slices.Contains(flags, "master") {
			m.masterID = f[3]
		}
		for _, s := range f[8:] {
			if strings.HasPrefix(s, "[") {
				m.open = append(m.open, s)
				continue
			}
			first, last, isRange := strings.Cut(s, "-")
			from, err1 := strconv.Atoi(first)
			to, err2 := from, error(nil)
			if isRange {
				to, err2 = strconv.Atoi(last)
			}
			if err := errors.Join(err1, err2); err != nil {
				return nil, fmt.Errorf("CLUSTER NODES: slots %q: %w", s, err)
			}
			for n := from; n <= to; n++ {
				m.slots = append(m.slots, n)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// view returns the cluster as one node sees it.
func view(ctx context.Context, addr string) ([]*member, error) {
	reply, err := text(ctx, addr, "CLUSTER", "NODES")
	if err != nil {
		return nil, err
	}
	return parseNodes(reply)
}

// views returns what every reachable node sees, by its address.
func (c *Cluster) views(ctx context.Context) (map[string][]*member, error) {
	out, errs := map[string][]*member{}, []error(nil)
	for _, n := range c.Nodes {
		if v, err := view(ctx, n.Addr); err != nil {
			errs = append(errs, err)
		} else {
			out[n.Addr] = v
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no node answers: %w", errors.Join(errs...))
	}
	return out, nil
}

// ownerIn returns the master of a slot in a view, nil for none.
func ownerIn(v []*member, slot int) *member {
	for _, m := range v {
		if m.isMaster() && slices.Contains(m.slots, slot) {
			return m
		}
	}
	return nil
}

func memberIn(v []*member, addr string) *member {
	for _, m := range v {
		if m.addr == addr {
			return m
		}
	}
	return nil
}

// agreedMaster returns the master of a slot, if all reachable nodes name the
// same one and it knows of itself that it is.
func (c *Cluster) agreedMaster(ctx context.Context, slot int) (string, error) {
	views, err := c.views(ctx)
	if err != nil {
		return "", err
	}
	addr := ""
	for seenBy, v := range views {
		m := ownerIn(v, slot)
		switch {
		case m == nil:
			return "", fmt.Errorf("%s knows no master of slot %d", seenBy, slot)
		case addr != "" && m.addr != addr:
			return "", fmt.Errorf("the master of slot %d is %s or, as %s sees it, %s", slot, addr, seenBy, m.addr)
		}
		addr = m.addr
	}
	if views[addr] == nil {
		return "", fmt.Errorf("%s, the master of slot %d, does not answer", addr, slot)
	}
	return addr, nil
}

// checkEpochs returns why the nodes do not know of each other's latest claims to
// slots yet.
func (c *Cluster) checkEpochs(ctx context.Context) error {
	views, err := c.views(ctx)
	if err != nil {
		return err
	}
	claims, claimed := map[string]string{}, map[string]string{} // by node, and by epoch
	for seenBy, v := range views {
		for _, m := range v {
			if !m.isMaster() {
				continue
			}
			if other, ok := claimed[m.epoch]; ok && other != m.id {
				return fmt.Errorf("two masters have the epoch %s, as %s sees it", m.epoch, seenBy)
			}
			if was, ok := claims[m.id]; ok && was != m.epoch {
				return fmt.Errorf("%s has the epoch %s or, as %s sees it, %s", m.addr, was, seenBy, m.epoch)
			}
			claims[m.id], claimed[m.epoch] = m.epoch, m.id
		}
	}
	return nil
}

// checkWhole returns why the cluster is not complete yet: so many masters with
// slots, every node known to every other and every replica in sync.
func (c *Cluster) checkWhole(ctx context.Context, masters int) error {
	views, err := c.views(ctx)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		info, err := text(ctx, n.Addr, "CLUSTER", "INFO")
		if err != nil {
			return err
		}
		if !strings.Contains(info, "cluster_state:ok") || len(views[n.Addr]) != len(c.Nodes) {
			return fmt.Errorf("%s knows %d of %d nodes: %s", n.Addr, len(views[n.Addr]), len(c.Nodes), info)
		}
		serving, replicas := 0, 0
		for _, m := range views[n.Addr] {
			switch {
			case m.failed || !m.self && !m.linkConnected:
				return fmt.Errorf("%s has no link to %s", n.Addr, m.addr)
			case m.masterID != "":
				replicas++
			case len(m.slots) > 0:
				serving++
			}
			if m.self && m.masterID != "" {
				if err := checkSynced(ctx, m.addr); err != nil {
					return err
				}
			}
		}
		if serving != masters || serving+replicas != len(c.Nodes) {
			return fmt.Errorf("%s knows %d masters and %d replicas, want %d and %d", n.Addr, serving, replicas, masters, len(c.Nodes)-masters)
		}
	}
	return nil
}

// checkSynced returns why a replica is not in sync with its master.
func checkSynced(ctx context.Context, replica string) error {
	info, err := text(ctx, replica, "INFO", "replication")
	if err == nil {
		err = syncedIn(replica, info)
	}
	return err
}

// syncedIn returns why a replica is not in sync, by its INFO replication.
func syncedIn(replica, info string) error {
	if !strings.Contains(info, "role:slave") || !strings.Contains(info, "master_link_status:up") || strings.Contains(info, "master_sync_in_progress:1") {
		return fmt.Errorf("replica %s is not in sync: %s", replica, info)
	}
	return nil
}

// await calls check until it returns nil, for at most awaitTimeout.
func await(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(awaitTimeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("not within %s: %s: %v", awaitTimeout, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
