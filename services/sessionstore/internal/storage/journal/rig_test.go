package journal

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

const settleMax = time.Hour

// T is what a rig needs of a test, a property's included.
type T interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// rig is a journal over a store that can be made to fail. The store outlives
// the journal's process.
type rig struct {
	t     T
	clock *storagetest.Clock
	inner *memory.Store
	below *storagetest.Faulty
	dir   string
	*Store
	opts Options
	// marked and stale count.
	marked, stale int
}

func newRig(t T, dir string, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, clock: storagetest.NewClock(), dir: dir}
	var err error
	r.inner, err = memory.New(memory.Options{Shards: storagetest.Shards, MaxEvents: 10_000, SettleMax: settleMax, Clock: r.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	r.opts = Options{Clock: r.clock.Now, Shards: storagetest.Shards, MaxEvents: 10_000, SettleMax: settleMax, reopenEvery: 5 * time.Millisecond}
	for _, c := range change {
		c(&r.opts)
	}
	r.open(dir, storagetest.Works)
	return r
}

// newRigOn is a rig on a disk that can be full.
func newRigOn(t T, dir string, d *flakyDisk) *rig {
	t.Helper()
	return newRig(t, dir, func(o *Options) { o.create = d.create })
}

// beside is another replica over the same store.
func (r *rig) beside(dir string) *rig {
	r.t.Helper()
	out := &rig{t: r.t, clock: r.clock, inner: r.inner, opts: r.opts}
	out.open(dir, storagetest.Works)
	return out
}

// stay keeps the store underneath open when the journal closes.
type stay struct{ storage.Store }

func (stay) Close() error { return nil }

func (r *rig) open(dir string, fault storagetest.Fault) {
	r.t.Helper()
	r.below = &storagetest.Faulty{Store: stay{r.inner}}
	r.below.Set(fault)
	near, err := fallback.New(r.below, fallback.Options{Clock: r.clock.Now})
	if err != nil {
		r.t.Fatal(err)
	}
	opts := r.opts
	opts.Dir, opts.Base = dir, near.Base
	opts.Marked = func(context.Context) { r.marked++ }
	opts.Stale = func(context.Context, time.Duration) { r.stale++ }
	if r.Store, err = New(near, opts); err != nil {
		r.t.Fatal(err)
	}
	r.dir = dir
}

// crash starts another process with what is on disk now; the old one reaches
// nothing any more.
func (r *rig) crash(dir string, fault storagetest.Fault) {
	r.t.Helper()
	if err := os.CopyFS(dir, os.DirFS(r.dir)); err != nil {
		r.t.Fatal(err)
	}
	r.below.Set(storagetest.Refuses)
	_ = r.Close() // it fails to drain, as it should
	r.open(dir, fault)
}

func nothingKnown(string) (*sessionv1.Session, time.Duration, error) {
	return nil, 0, storage.ErrUnavailable
}

func (r *rig) close() {
	if err := errors.Join(r.Close(), r.inner.Close()); err != nil {
		r.t.Errorf("close: %v", err)
	}
}

// drained brings the store underneath back and waits until nothing waits.
func (r *rig) drained() {
	r.t.Helper()
	r.below.Set(storagetest.Works)
	storagetest.Until(r.t, "all is replayed", func() bool { return r.depth.Load() == 0 })
}

func (r *rig) fresh(user string) *sessionv1.Session {
	now := r.clock.Now().UnixMilli()
	p := lifetime.Resolve(&sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(10 * time.Minute), Extension: durationpb.New(5 * time.Minute), MaxExtensions: proto.Int32(100), ExtendBelow: durationpb.New(2 * time.Minute),
	}, lifetime.DefaultPolicy())
	return &sessionv1.Session{
		Id: sessionid.New(sessionid.ShardOf("acme", user, "", storagetest.Shards)), User: user, Project: "acme", Revision: 1,
		CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now),
		ExpireTime: lifetime.Time(lifetime.Deadline(now, p)), CapTime: lifetime.Time(lifetime.NewTerms(now, p).Cap), TtlPolicy: p,
	}
}

func (r *rig) create(user string) string {
	r.t.Helper()
	s, _, err := r.Create(context.Background(), r.fresh(user), "")
	if err != nil {
		r.t.Fatal(err)
	}
	return s.GetId()
}

func event(id string) *sessionv1.Event {
	return &sessionv1.Event{Id: id, Type: "input:text", Origin: sessionv1.Event_USER, Time: lifetime.Time(1_800_000_000_000)}
}

func label(k, v string) storage.Update { return storage.Update{SetLabels: map[string]string{k: v}} }

func must[V any](t T) func(v V, err error) V {
	return func(v V, err error) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t T, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Fatalf("got %v, want %v", err, w)
		}
	}
}

var errDisk = errors.New("no space left on device")

// flakyDisk is a disk that can be full.
type flakyDisk struct {
	full atomic.Bool
	// refused is told of the files that could not be made; nobody is where nil.
	refused func(path string)
}

type flakyFile struct {
	*os.File
	disk *flakyDisk
}

func (d *flakyDisk) create(path string) (wal.File, error) {
	if d.full.Load() {
		if d.refused != nil {
			d.refused(path)
		}
		return nil, errDisk
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	return &flakyFile{f, d}, err
}

func (f *flakyFile) Write(b []byte) (int, error) {
	if f.disk.full.Load() {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, errDisk
	}
	return f.File.Write(b)
}
