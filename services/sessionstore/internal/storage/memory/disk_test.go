package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

const testShards = 4

// disk is a disk that can be held up, or made to fail.
type disk struct {
	held    sync.RWMutex
	syncing atomic.Int64
	fail    atomic.Pointer[error]
	// noFiles: no file can be made, either.
	noFiles atomic.Bool
	// snapshot is called when a snapshot is begun; its file is never held up.
	snapshot func()
}

type diskFile struct {
	*os.File
	disk *disk
}

func (d *disk) create(path string) (wal.File, error) {
	if d.noFiles.Load() {
		return nil, *d.fail.Load()
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if d.snapshot != nil && strings.HasSuffix(path, ".tmp") {
		d.snapshot()
		return f, err
	}
	return &diskFile{f, d}, err
}

func (f *diskFile) Sync() error {
	f.disk.syncing.Add(1)
	f.disk.held.RLock()
	defer f.disk.held.RUnlock()
	if err := f.disk.fail.Load(); err != nil {
		return *err
	}
	return f.File.Sync()
}

func openDisk(t *testing.T, dir string, d *disk, now *atomic.Int64) *Store {
	t.Helper()
	s, err := New(Options{
		Shards: testShards, MaxEvents: 1000, DataDir: dir, create: d.create,
		Clock: func() time.Time { return time.UnixMilli(now.Load()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func clockAt() *atomic.Int64 {
	now := &atomic.Int64{}
	now.Store(1_800_000_000_000)
	return now
}

func create(t *testing.T, s *Store, user string) *sessionv1.Session {
	t.Helper()
	p, ms := lifetime.DefaultPolicy(), s.now()
	x, _, err := s.Create(t.Context(), &sessionv1.Session{
		Id: sessionid.New(sessionid.ShardOf("acme", user, "", testShards)), User: user, Project: "acme",
		CreateTime: lifetime.Time(ms), UpdateTime: lifetime.Time(ms), LastActivityTime: lifetime.Time(ms),
		ExpireTime: lifetime.Time(lifetime.Deadline(ms, p)), TtlPolicy: p,
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestRepeatedExtendWaitsForTheFirst: "has extended already" must not be said
// while the extension could still be lost.
func TestRepeatedExtendWaitsForTheFirst(t *testing.T) {
	d, now := &disk{}, clockAt()
	s := openDisk(t, t.TempDir(), d, now)
	x := create(t, s, "ann")
	now.Store(lifetime.Millis(x.GetExpireTime()) - 1000)
	activity := []storage.Activity{{SessionID: x.GetId(), EventID: "e"}}

	d.held.Lock()
	before := d.syncing.Load()
	first := make(chan error, 1)
	go func() {
		r, err := s.Extend(context.Background(), activity)
		if err == nil && r[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
			err = fmt.Errorf("got %v", r[0].Response)
		}
		first <- err
	}()
	for d.syncing.Load() == before { // the first is on its way to the disk
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	r, err := s.Extend(ctx, activity)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("answered %v %v before the disk had it", r, err)
	}
	d.held.Unlock()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if r, err := s.Extend(t.Context(), activity); err != nil || r[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_NOT_NEEDED {
		t.Errorf("repeated: %v %v", r, err)
	}
}

// TestSnapshotWaitsForWhatItHolds: a snapshot must not count before the
// changes that it shows are on disk.
func TestSnapshotWaitsForWhatItHolds(t *testing.T) {
	d, now := &disk{}, clockAt()
	s := openDisk(t, t.TempDir(), d, now)
	x := create(t, s, "ann")
	ended := make(chan error, 1)
	begun := make(chan struct{})
	d.snapshot = func() {
		d.held.Lock()
		before := d.syncing.Load()
		go func() {
			_, err := s.End(context.Background(), x.GetId(), "done")
			ended <- err
		}()
		for d.syncing.Load() == before {
			time.Sleep(time.Millisecond)
		}
		close(begun)
	}
	taken := make(chan error, 1)
	go func() { taken <- s.Snapshot() }()
	<-begun
	select {
	case err := <-taken:
		t.Errorf("the snapshot counts before the change that it holds: %v", err)
		taken <- err
	case <-time.After(50 * time.Millisecond):
	}
	d.held.Unlock()
	for _, done := range []chan error{ended, taken} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestFailedDiskStopsWrites: reads go on, and nothing is acknowledged again.
func TestFailedDiskStopsWrites(t *testing.T) {
	d, now, dir := &disk{}, clockAt(), t.TempDir()
	s := openDisk(t, dir, d, now)
	x := create(t, s, "ann")
	full := errors.New("no space left")
	d.fail.Store(&full)
	for range 2 {
		_, err := s.Append(t.Context(), x.GetId(), []*sessionv1.Event{{Id: "lost", Type: "input:text"}})
		if !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, full) {
			t.Errorf("append: %v", err)
		}
		d.fail.Store(nil) // a disk that recovers is not trusted either
	}
	if _, err := s.Get(t.Context(), x.GetId()); err != nil {
		t.Errorf("get: %v", err)
	}
	if err := s.Status(t.Context()).Err; !errors.Is(err, full) {
		t.Errorf("status: %v", err)
	}
	if err := s.Snapshot(); err == nil {
		t.Error("a snapshot was taken of what could not be written")
	}
	if err := s.Close(); !errors.Is(err, full) {
		t.Errorf("close: %v", err)
	}
	if _, err := openDisk(t, dir, &disk{}, now).Get(t.Context(), x.GetId()); err != nil {
		t.Errorf("get after reopening: %v", err)
	}
}

// TestSnapshotOfALongLog: what a session keeps may be more than the largest
// record of the log.
func TestSnapshotOfALongLog(t *testing.T) {
	now, dir := clockAt(), t.TempDir()
	s := openDisk(t, dir, &disk{}, now)
	x := create(t, s, "ann")
	data := structpb.NewStringValue(strings.Repeat("x", 1<<20))
	const most = wal.MaxRecord>>20 + 2
	for n := range most {
		if _, err := s.Append(t.Context(), x.GetId(), []*sessionv1.Event{{Id: fmt.Sprint(n), Type: "input:text", Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	page, err := openDisk(t, dir, &disk{}, now).ListEvents(t.Context(), storage.EventQuery{SessionID: x.GetId(), After: "0", Limit: 1000})
	if err != nil || len(page.Events) != most+1 {
		t.Errorf("%d events after reopening, %v", len(page.Events), err)
	}
}

// TestSnapshotUnderLoad: changes that go on while snapshots are taken are all
// there once, in order, after reopening.
func TestSnapshotUnderLoad(t *testing.T) {
	now, dir := clockAt(), t.TempDir()
	s := openDisk(t, dir, &disk{}, now)
	var writers sync.WaitGroup
	var mu sync.Mutex
	acked := map[string]int{}
	ended := map[string]bool{}
	stop := make(chan struct{})
	for w := range 8 {
		x := create(t, s, fmt.Sprint("u", w))
		writers.Go(func() {
			n := 0
			for ; ; n++ {
				select {
				case <-stop:
					_, err := s.End(context.Background(), x.GetId(), "done")
					mu.Lock()
					defer mu.Unlock()
					acked[x.GetId()], ended[x.GetId()] = n, err == nil
					return
				default:
				}
				if _, err := s.Append(context.Background(), x.GetId(), []*sessionv1.Event{{Id: fmt.Sprint(n), Type: "input:text"}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 10 {
		if err := s.Snapshot(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	writers.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openDisk(t, dir, &disk{}, now)
	for id, n := range acked {
		page, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, Tail: 1, Limit: 1})
		if err != nil || len(page.Events) != 1 || page.Events[0].GetType() != storage.TypeEnded || !page.Over || !ended[id] {
			t.Errorf("session %s: %v %v", id, page, err)
		}
		page, err = s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 1000})
		if want := min(n+2, 1000); err != nil || len(page.Events) != want {
			t.Errorf("session %s has %d events, want %d: %v", id, len(page.Events), want, err)
		}
	}
}

// TestRestartOnAFullDisk: a store is opened on a disk that is full, whichever file
// cannot be made or written, answers reads, says why it takes no writes, and takes
// them once there is room.
func TestRestartOnAFullDisk(t *testing.T) {
	for n := range 4 {
		torn, noFiles := n&1 != 0, n&2 != 0
		now, dir := clockAt(), t.TempDir()
		s := openDisk(t, dir, &disk{}, now)
		x := create(t, s, "ann")
		if torn {
			d := &disk{}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openDisk(t, dir, d, now)
			full := errors.New("no space left")
			d.fail.Store(&full)
			if _, err := s.Append(t.Context(), x.GetId(), []*sessionv1.Event{{Id: "lost", Type: "input:text"}}); !errors.Is(err, full) {
				t.Fatal(err)
			}
			_ = s.Close() // it says that it failed
		} else if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		d, full := &disk{}, errors.New("no space left")
		for range 3 {
			d.fail.Store(&full)
			d.noFiles.Store(noFiles)
			s = openDisk(t, dir, d, now)
			if _, err := s.Get(t.Context(), x.GetId()); err != nil {
				t.Errorf("get: %v", err)
			}
			_, err := s.Append(t.Context(), x.GetId(), []*sessionv1.Event{{Id: "refused", Type: "input:text"}})
			if !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, storage.ErrDisk) || !errors.Is(err, full) {
				t.Errorf("append: %v", err)
			}
			if err := s.Status(t.Context()).Err; !errors.Is(err, full) {
				t.Errorf("status: %v", err)
			}
			if err := s.Snapshot(); !errors.Is(err, full) {
				t.Errorf("snapshot: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		s = openDisk(t, dir, d, now)
		d.fail.Store(nil)
		d.noFiles.Store(false)
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := s.Append(t.Context(), x.GetId(), []*sessionv1.Event{{Id: "kept", Type: "input:text"}}); err == nil {
				break
			} else if time.Now().After(until) {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.Snapshot(), s.Close()); err != nil {
			t.Fatal(err)
		}
		s = openDisk(t, dir, &disk{}, now)
		page, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: x.GetId(), After: "0", Limit: 10})
		if err != nil || page.Events[len(page.Events)-1].GetId() != "kept" { // the first one may be there, too
			t.Errorf("the log has %v, %v", page.Events, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
