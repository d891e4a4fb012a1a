package storagetest_test

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// broken is a store with one bug in it: hooks that are not nil take the place
// of the store's own methods.
type broken struct {
	storage.Store
	extend func(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error)
	// read changes a session that is read.
	read  func(s *sessionv1.Session)
	sweep func(ctx context.Context) (storage.SweepResult, error)
	open  func(ctx context.Context, group, consumer string) (storage.FeedReader, error)
	set   func(project string, p *sessionv1.TTLPolicy)
	get   func(id string)
	// restart is called where the store would be closed and opened again.
	restart func()
}

func (b *broken) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	if b.extend != nil {
		return b.extend(ctx, items)
	}
	return b.Store.Extend(ctx, items)
}

func (b *broken) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	if b.get != nil {
		b.get(id)
	}
	return b.Store.Get(ctx, id)
}

func (b *broken) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	res, err := b.Store.GetMany(ctx, ids)
	for i := range res {
		if b.read != nil && res[i].Session != nil {
			res[i].Session, _ = proto.Clone(res[i].Session).(*sessionv1.Session)
			b.read(res[i].Session)
		}
	}
	return res, err
}

func (b *broken) Sweep(ctx context.Context) (storage.SweepResult, error) {
	if b.sweep != nil {
		return b.sweep(ctx)
	}
	return b.Store.Sweep(ctx)
}

func (b *broken) OpenFeed(ctx context.Context, group, consumer string) (storage.FeedReader, error) {
	if b.open != nil {
		return b.open(ctx, group, consumer)
	}
	return b.Store.OpenFeed(ctx, group, consumer)
}

func (b *broken) SetPolicy(ctx context.Context, project string, p *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	if b.set != nil {
		b.set(project, p)
	}
	return b.Store.SetPolicy(ctx, project, p)
}

// outcomes answers some outcomes as others.
func outcomes(from, to sessionv1.ExtendTTLResponse_Outcome) func(b *broken, _ func() int64) {
	return func(b *broken, _ func() int64) {
		b.extend = func(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
			res, err := b.Store.Extend(ctx, items)
			if err == nil && res[0].Response.GetOutcome() == from {
				res[0].Response = &sessionv1.ExtendTTLResponse{Outcome: to}
			}
			return res, err
		}
	}
}

// changed changes the reports that match.
func changed(change func(a *storage.Activity, now int64)) func(b *broken, now func() int64) {
	return func(b *broken, now func() int64) {
		b.extend = func(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
			items = slices.Clone(items)
			change(&items[0], now())
			return b.Store.Extend(ctx, items)
		}
	}
}

// TestModelCatchesPlantedBugs proves that a history can go wrong.
func TestModelCatchesPlantedBugs(t *testing.T) {
	quick(t)
	for bug, plant := range map[string]func(b *broken, now func() int64){
		"nothing": func(*broken, func() int64) {},
		"reading counts as activity": func(b *broken, _ func() int64) {
			b.get = func(id string) { _, _ = b.Store.Extend(context.Background(), []storage.Activity{{SessionID: id}}) }
		},
		"judged by when it is handled": changed(func(a *storage.Activity, _ int64) { a.Time = time.Time{} }),
		"the past is refused": changed(func(a *storage.Activity, now int64) {
			if a.Time.UnixMilli() < now-1000 {
				a.Time = time.UnixMilli(now + 1000)
			}
		}),
		"the cap is no cap": outcomes(sessionv1.ExtendTTLResponse_CAPPED, sessionv1.ExtendTTLResponse_EXTENDED),
		"a deadline goes past the cap": func(b *broken, _ func() int64) {
			b.read = func(s *sessionv1.Session) {
				if p := s.GetTtlPolicy(); s.GetExtensionCount() == p.GetMaxExtensions() {
					s.ExpireTime = lifetime.Time(lifetime.NewTerms(lifetime.Millis(s.GetCreateTime()), p).Cap + 1)
				}
			}
		},
		"a batch is judged by its first": func(b *broken, _ func() int64) {
			b.extend = func(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
				res, err := b.Store.Extend(ctx, items[:1])
				return slices.Repeat(res, len(items)), err
			}
		},
		"a session that is over answers as if it were not": outcomes(sessionv1.ExtendTTLResponse_ENDED, sessionv1.ExtendTTLResponse_TOO_LATE),
		"the interval is ignored":                          outcomes(sessionv1.ExtendTTLResponse_TOO_SOON, sessionv1.ExtendTTLResponse_EXTENDED),
		"the same again extends again": func(b *broken, _ func() int64) {
			n := 0
			changed(func(a *storage.Activity, _ int64) {
				n++
				a.EventID = fmt.Sprint("always new ", n)
			})(b, nil)
		},
		"the future is not clamped": func(b *broken, now func() int64) {
			future := map[string]int64{}
			b.extend = func(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
				res, err := b.Store.Extend(ctx, items)
				if at := items[0].Time.UnixMilli(); at > now() && res[0].Response.GetOutcome() < sessionv1.ExtendTTLResponse_TOO_LATE {
					future[items[0].SessionID] = at
				}
				return res, err
			}
			b.read = func(s *sessionv1.Session) {
				if at := future[s.GetId()]; at > 0 {
					s.LastActivityTime = lifetime.Time(at)
				}
			}
		},
		"the last activity goes back": func(b *broken, _ func() int64) {
			last := map[string]int64{}
			b.extend = func(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
				last[items[0].SessionID] = items[0].Time.UnixMilli()
				return b.Store.Extend(ctx, items)
			}
			b.read = func(s *sessionv1.Session) {
				if at := last[s.GetId()]; at > 0 {
					s.LastActivityTime = lifetime.Time(min(at, lifetime.Millis(s.GetLastActivityTime())))
				}
			}
		},
		"a new policy changes sessions that live": func(b *broken, _ func() int64) {
			policies := map[string]*sessionv1.TTLPolicy{}
			b.set = func(project string, p *sessionv1.TTLPolicy) { policies[project] = p }
			b.read = func(s *sessionv1.Session) {
				if p := policies[s.GetProject()]; p != nil && s.GetExtensionCount() == 0 {
					s.ExpireTime = lifetime.Time(lifetime.Deadline(lifetime.Millis(s.GetCreateTime()), p))
				}
			}
		},
		"a sweep waits for nobody": func(b *broken, _ func() int64) {
			b.open = func(ctx context.Context, _, consumer string) (storage.FeedReader, error) {
				return b.Store.OpenFeed(ctx, "somebody-else", consumer)
			}
		},
		"a restart arms the clock anew": func(b *broken, _ func() int64) {
			b.restart = func() {
				b.read = func(s *sessionv1.Session) { s.ExpireTime = lifetime.Time(lifetime.Millis(s.GetExpireTime()) + 1) }
			}
		},
		"a sweep does nothing": func(b *broken, _ func() int64) {
			b.sweep = func(context.Context) (storage.SweepResult, error) { return storage.SweepResult{}, nil }
		},
		"expired is told twice": func(b *broken, _ func() int64) {
			b.open = func(ctx context.Context, group, consumer string) (storage.FeedReader, error) {
				r, err := b.Store.OpenFeed(ctx, group, consumer)
				return &stutters{r}, err
			}
		},
	} {
		t.Run(bug, func(t *testing.T) {
			r := &rapidRecorder{TB: t}
			done := make(chan struct{})
			go func() { // as a failing check ends its goroutine
				defer close(done)
				rapid.Check(r, func(rt *rapid.T) {
					var now atomic.Int64
					s := modelMemory(t, &now)
					b := &broken{Store: s}
					plant(b, now.Load)
					ms := storagetest.ModelStore{Store: b, SetClock: now.Store, Close: func() { _ = s.Close() }}
					if b.restart != nil {
						ms.Restart = func() storage.Store {
							b.restart()
							return b
						}
					}
					storagetest.History(rt, ms)
				})
			}()
			<-done
			if caught := r.failed.Load(); caught == (bug == "nothing") {
				t.Errorf("caught: %v", caught)
			}
		})
	}
}

func modelMemory(t *testing.T, now *atomic.Int64) *memory.Store {
	t.Helper()
	o := storagetest.OptionsFor(time.Second)
	s, err := memory.New(memory.Options{
		Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention,
		Clock: func() time.Time { return time.UnixMilli(now.Load()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stutters delivers session:expired twice.
type stutters struct{ storage.FeedReader }

func (s *stutters) Next(ctx context.Context, limit int) (storage.FeedBatch, error) {
	b, err := s.FeedReader.Next(ctx, limit)
	for i, e := range b.Entries {
		if e.GetEvent().GetType() == storage.TypeExpired {
			b.Entries = slices.Insert(slices.Clone(b.Entries), i, e)
			break
		}
	}
	return b, err
}

// quick keeps rapid from shrinking failures that are wanted, and from writing
// them down.
func quick(t *testing.T) {
	t.Helper()
	for name, value := range map[string]string{"rapid.shrinktime": "0s", "rapid.nofailfile": "true"} {
		old := flag.Lookup(name).Value.String()
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = flag.Set(name, old) })
	}
}

// rapidRecorder is a test that only remembers whether it failed.
type rapidRecorder struct {
	rapid.TB
	failed atomic.Bool
}

func (r *rapidRecorder) Logf(string, ...any)   {}
func (r *rapidRecorder) Log(...any)            {}
func (r *rapidRecorder) Errorf(string, ...any) { r.failed.Store(true) }
func (r *rapidRecorder) Error(...any)          { r.failed.Store(true) }
func (r *rapidRecorder) Fail()                 { r.failed.Store(true) }
func (r *rapidRecorder) Failed() bool          { return r.failed.Load() }

func (r *rapidRecorder) Fatalf(string, ...any) { r.FailNow() }
func (r *rapidRecorder) Fatal(...any)          { r.FailNow() }

func (r *rapidRecorder) FailNow() {
	r.failed.Store(true)
	runtime.Goexit()
}
