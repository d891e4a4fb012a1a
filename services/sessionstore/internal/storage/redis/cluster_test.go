//go:build e2e

package redis_test

import (
	"context"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestClusterConformance runs the suite over a cluster of three masters. A
// cluster has one database, so the cases run one after the other and flush it.
func TestClusterConformance(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	for _, c := range storagetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			client := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: strings.Split(strings.TrimPrefix(cluster.URL(), "redis+cluster://"), ",")})
			defer client.Close()
			err := client.ForEachMaster(t.Context(), func(ctx context.Context, node *goredis.Client) error {
				return node.FlushAll(ctx).Err()
			})
			if err != nil {
				t.Fatal(err)
			}
			c.Run(t, storagetest.Fixture{
				Store: open(t, cluster.URL()), Unit: unit, Now: time.Now, Advance: time.Sleep,
				Replica: func() storage.Store { return open(t, cluster.URL()) },
				Entries: func() int {
					n := 0
					for _, s := range cluster.Nodes {
						node := goredis.NewClient(&goredis.Options{Addr: s.Addr})
						n += perSession(t, node)
						_ = node.Close()
					}
					return n
				},
			})
		})
	}
}
