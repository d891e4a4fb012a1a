package redis_test

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// declarations compares what scripts declare with what they touch, by the
// commands that MONITOR shows.
type declarations struct {
	names    map[string]string // sha or MonitoredText -> script
	commands map[string]*goredis.CommandInfo
	conn     net.Conn
	done     chan struct{}

	mu      sync.Mutex
	current string            // the script that runs, '' for none of ours
	keys    map[string]bool   // that it has declared
	emptied map[string]string // keys that it may have emptied, and by which command
	calls   map[string]int
	touched map[string]map[string]bool // by script: kinds of keys
	wrong   map[string]bool
}

// watchDeclarations begins to compare; finish ends it and reports.
func watchDeclarations(t testing.TB, server *redistest.Server, s *redis.Store) *declarations {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer client.Close()
	commands, err := client.Command(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	d := &declarations{
		names: s.ScriptNames(), commands: commands, conn: conn, done: make(chan struct{}),
		calls: map[string]int{}, touched: map[string]map[string]bool{}, wrong: map[string]bool{},
	}
	if _, err := conn.Write([]byte("MONITOR\r\n")); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReaderSize(conn, 1<<20)
	if line, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(line, "+OK") {
		t.Fatalf("MONITOR: %q, %v", line, err)
	}
	go func() {
		defer close(d.done)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			d.read(line)
		}
	}()
	return d
}

var monitorLine = regexp.MustCompile(`^\+\d+\.\d+ \[\d+ ([^\]]*)\] "(.*)"\r\n$`)

func (d *declarations) read(line string) {
	m := monitorLine.FindStringSubmatch(line)
	if m == nil {
		d.note("unreadable line of MONITOR: " + line)
		return
	}
	// Keys are compared as MONITOR spells them.
	args := strings.Split(m[2], `" "`)
	d.mu.Lock()
	defer d.mu.Unlock()
	if m[1] != "lua" {
		d.begin(args)
		return
	}
	if d.current == "" {
		return
	}
	command := strings.ToUpper(args[0])
	for _, key := range d.keysOf(args) {
		// Redis deletes a key that is empty. On a node whose slot is moving, the next
		// command on it fails, and half of the script is done.
		if by := d.emptied[key]; by != "" && by != command {
			d.wrong[fmt.Sprintf("%s touches %s with %s after %s, which may have emptied it", d.current, kindOf(key), command, by)] = true
		}
		switch command {
		case "ZREM", "HDEL", "DEL":
			if command == "DEL" || kindOf(key) != "session" { // a record keeps most of its fields
				d.emptied[key] = command
			}
		}
		if !d.keys[key] {
			d.wrong[fmt.Sprintf("%s touches %s with %s, which it does not declare", d.current, kindOf(key), args[0])] = true
		}
		d.touched[d.current][kindOf(key)] = true
	}
}

// begin takes up the script that a client calls.
func (d *declarations) begin(args []string) {
	d.current, d.keys, d.emptied = "", map[string]bool{}, map[string]string{}
	if len(args) < 3 {
		return
	}
	name := ""
	switch strings.ToLower(args[0]) {
	case "evalsha":
		name = d.names[args[1]]
	case "eval":
		name = d.names[redis.MonitoredText(args[1])]
	default:
		return
	}
	n, err := strconv.Atoi(args[2])
	if name == "" || err != nil {
		d.wrong[fmt.Sprintf("a script that is none of ours: %.80s", args[1])] = true
		return
	}
	d.current = name
	d.calls[name]++
	if d.touched[name] == nil {
		d.touched[name] = map[string]bool{}
	}
	for _, key := range args[3 : 3+n] {
		d.keys[key] = true
	}
}

// keysOf are the arguments of a command that are keys, by what the server says of
// the command.
func (d *declarations) keysOf(args []string) []string {
	info := d.commands[strings.ToLower(args[0])]
	if info == nil {
		d.wrong["unknown command "+args[0]] = true
		return nil
	}
	if info.FirstKeyPos == 0 {
		return nil
	}
	last := int(info.LastKeyPos)
	if last < 0 {
		last += len(args)
	}
	var keys []string
	for i := int(info.FirstKeyPos); i <= last; i += int(info.StepCount) {
		keys = append(keys, args[i])
	}
	return keys
}

func (d *declarations) note(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wrong[what] = true
}

// kindOf is a key's kind: what is between the shard's prefix and a name.
func kindOf(key string) string {
	_, rest, _ := strings.Cut(key, "}:")
	kind, _, _ := strings.Cut(rest, ":")
	return kind
}

// finish reports scripts that touched a key which they had not declared, or again
// after they may have emptied it, that were
// never called, and that declare keys which they never touched: each makes calls
// fail for as long as a slot moves.
func (d *declarations) finish(t testing.TB, declared map[string][]string) {
	t.Helper()
	time.Sleep(50 * time.Millisecond) // for the last lines; what is missing is reported
	_ = d.conn.Close()
	<-d.done
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(d.wrong)) {
		t.Error(what)
	}
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		if d.calls[name] == 0 {
			t.Errorf("%s was never called", name)
			continue
		}
		for _, kind := range declared[name] {
			if !d.touched[name][kind] {
				t.Errorf("%s declares %s and never touched it", name, kind)
			}
		}
	}
	t.Logf("calls compared: %v", d.calls)
}

// exerciseScripts makes the calls that the suite does not: it repairs a store with
// an orphan in its index, and warns a session whose log is full.
func exerciseScripts(t testing.TB, s *redis.Store, client *goredis.Client) {
	t.Helper()
	soon, _ := create(t, s, newSession(2, "ann", time.Minute), "") // to be warned at once
	events := make([]*sessionv1.Event, storagetest.MaxEvents)
	for i := range events {
		events[i] = &sessionv1.Event{Id: fmt.Sprint(i), Type: "input:text"}
	}
	if _, err := s.Append(t.Context(), soon, events); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Sweep(t.Context()); err != nil || r.Warned != 1 {
		t.Fatalf("sweeping: %+v, %v", r, err)
	}
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "repaired")
	for _, index := range []string{"deadlines", "warnings", "by-user", "by-project"} {
		if err := client.Del(t.Context(), "stoker:{s1}:"+index).Err(); err != nil {
			t.Fatal(err)
		}
	}
	gone, _ := create(t, s, newSession(1, "bob", time.Hour), "")
	for _, kind := range []string{"session:", "events:", "ids:"} {
		if err := client.Del(t.Context(), "stoker:{s1}:"+kind+gone).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := s.Repair(t.Context(), storage.RepairQuery{}); err != nil || !r.Done || r.Restored == 0 || r.Dropped == 0 {
		t.Fatalf("repairing %s: %+v, %v", id, r, err)
	}
	if err := s.MarkGap(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
}
