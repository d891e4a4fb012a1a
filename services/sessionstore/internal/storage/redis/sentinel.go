package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	goredis "github.com/redis/go-redis/v9"
)

// sentinels ask the Sentinels of the URL which server is the master.
type sentinels struct {
	name    string
	clients []*goredis.SentinelClient
}

func newSentinels(c *conn, u target, opts goredis.UniversalOptions) *sentinels {
	s := &sentinels{name: u.master}
	for _, addr := range u.addrs {
		at := &server{addr: addr}
		host, _, _ := net.SplitHostPort(addr)
		s.clients = append(s.clients, goredis.NewSentinelClient(&goredis.Options{
			Addr: addr, PoolSize: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
			DialTimeout: opts.DialTimeout, ReadTimeout: opts.ReadTimeout, WriteTimeout: opts.WriteTimeout,
			ConnMaxIdleTime: opts.ConnMaxIdleTime, ConnMaxLifetime: opts.ConnMaxLifetime,
			CredentialsProviderContext: c.access.sentinelCredentials,
			DisableIdentity:            true, MaintNotificationsConfig: opts.MaintNotificationsConfig,
			Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return orUnreached(c.dialer.dial(ctx, at, host))
			},
		}))
	}
	return s
}

// master returns the address that most of those Sentinels name that answer, and whether
// these are most of all.
func (s *sentinels) master(ctx context.Context) (addrs []string, sure bool, err error) {
	answers := make([]string, len(s.clients))
	errs := make([]error, len(s.clients))
	var asking sync.WaitGroup
	for i, client := range s.clients {
		asking.Go(func() {
			pair, err := client.GetMasterAddrByName(ctx, s.name).Result()
			switch {
			case errors.Is(err, goredis.Nil):
				errs[i] = fmt.Errorf("sentinel knows no master %q", s.name)
			case err != nil:
				errs[i] = err
			case len(pair) == 2:
				answers[i] = net.JoinHostPort(pair[0], pair[1])
			}
		})
	}
	asking.Wait()
	votes := map[string]int{}
	for _, a := range answers {
		if a == "" {
			continue
		}
		if votes[a]++; votes[a] == 1 {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil, false, fmt.Errorf("no Sentinel named a master: %w", errors.Join(errs...))
	}
	most := 0
	for i, a := range addrs {
		if votes[a] > votes[addrs[most]] {
			most = i
		}
	}
	// Only the one that most name counts: the others are behind, or cut off.
	return addrs[most : most+1], 2*votes[addrs[most]] > len(s.clients), nil
}

func (s *sentinels) close() error {
	var errs []error
	for _, c := range s.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
