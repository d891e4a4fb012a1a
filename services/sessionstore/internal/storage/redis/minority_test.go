package redis_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// fakeSentinel names a master; an empty one makes it hang.
type fakeSentinel struct {
	addr   string
	master atomic.Pointer[string]
}

func startFakeSentinel(t *testing.T, master string) *fakeSentinel {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	f := &fakeSentinel{addr: l.Addr().String()}
	f.name(master)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f
}

func (f *fakeSentinel) name(master string) { f.master.Store(&master) }

func (f *fakeSentinel) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		var words []string
		line, err := in.ReadString('\n')
		n, _ := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "*")))
		for range n {
			_, _ = in.ReadString('\n')
			word, _ := in.ReadString('\n')
			words = append(words, strings.TrimSpace(word))
		}
		if err != nil || len(words) == 0 {
			return
		}
		reply := "-ERR unknown command\r\n"
		if strings.EqualFold(words[0], "sentinel") {
			master := *f.master.Load()
			if master == "" {
				continue // no reply
			}
			host, port, _ := net.SplitHostPort(master)
			reply = fmt.Sprintf("*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(host), host, len(port), port)
		}
		if _, err := io.WriteString(conn, reply); err != nil {
			return
		}
	}
}

// TestOneSentinelIsNoMajority: while the Sentinels that know of a failover do not answer,
// the one that does not know of it leads nobody back to the former master.
func TestOneSentinelIsNoMajority(t *testing.T) {
	former, promoted := redistest.Start(t), redistest.Start(t)
	var sentinels []*fakeSentinel
	var addrs []string
	for _, master := range []string{former.Addr, promoted.Addr, promoted.Addr} {
		s := startFakeSentinel(t, master)
		sentinels, addrs = append(sentinels, s), append(addrs, s.addr)
	}
	breakers := resilience.NewRegistry(resilience.BreakerConfig{}, nil)
	s := open(t, "redis+sentinel://"+strings.Join(addrs, ",")+"/stoker", func(o *redis.Options) { o.Breakers, o.Timeout = breakers, 250*time.Millisecond })
	create(t, s, newSession(1, "ann", time.Hour), "")
	sentinels[1].name("")
	sentinels[2].name("")
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if nodes(breakers)[former.Addr] {
			t.Fatal("one Sentinel of three led to the former master")
		}
	}
	// Where the server does not answer, it is better than nothing.
	if err := promoted.Kill(); err != nil {
		t.Fatal(err)
	}
	sentinels[1].name(former.Addr)
	storagetest.Until(t, "two Sentinels of three lead to it", func() bool { return nodes(breakers)[former.Addr] })
}
