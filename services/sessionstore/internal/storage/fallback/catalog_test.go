package fallback_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// keeper is a store that keeps policies in a file, over one that can be made to fail
// and outlives it.
type keeper struct {
	t     *testing.T
	clock *storagetest.Clock
	inner *memory.Store
	below *storagetest.Faulty
	path  string
	most  int
	log   bytes.Buffer
	*fallback.Store
}

func newKeeper(t *testing.T, most int) *keeper {
	t.Helper()
	k := &keeper{t: t, clock: storagetest.NewClock(), path: filepath.Join(t.TempDir(), "policies"), most: most}
	var err error
	if k.inner, err = memory.New(memory.Options{Shards: storagetest.Shards, Clock: k.clock.Now}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.inner.Close() })
	return k
}

type open struct{ storage.Store }

func (open) Close() error { return nil }

// restart is another process on the same file.
func (k *keeper) restart(fault storagetest.Fault) {
	k.t.Helper()
	k.stop()
	k.below = &storagetest.Faulty{Store: open{k.inner}}
	k.below.Set(fault)
	var err error
	if k.Store, err = fallback.New(k.below, fallback.Options{Clock: k.clock.Now, MaxPolicies: k.most}); err != nil {
		k.t.Fatal(err)
	}
	k.KeepPolicies(k.path, slog.New(slog.NewTextHandler(&k.log, nil)))
}

func (k *keeper) stop() {
	k.t.Helper()
	if k.Store == nil {
		return
	}
	if err := k.Close(); err != nil {
		k.t.Fatal(err)
	}
	k.Store = nil
}

func (k *keeper) set(store storage.Store, project string, ttl time.Duration) {
	k.t.Helper()
	k.clock.Advance(time.Millisecond)
	if _, err := store.SetPolicy(k.t.Context(), project, &sessionv1.TTLPolicy{BaseTtl: durationpb.New(ttl)}); err != nil {
		k.t.Fatal(err)
	}
}

// untilKept waits until the file says something else than before.
func (k *keeper) untilKept(what string, before []byte) {
	k.t.Helper()
	storagetest.Until(k.t, what, func() bool {
		now, err := os.ReadFile(k.path)
		return err == nil && !bytes.Equal(now, before)
	})
}

func (k *keeper) file() []byte {
	b, _ := os.ReadFile(k.path) // none yet
	return b
}

// want checks what is answered of a project's policy: 0 for none, -1 for unknown.
func (k *keeper) want(project string, ttl time.Duration) {
	k.t.Helper()
	p, err := k.GetPolicy(k.t.Context(), project)
	switch {
	case ttl == 0 && !errors.Is(err, storage.ErrNotFound),
		ttl < 0 && (!errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, storage.ErrPolicyUnknown)),
		ttl > 0 && (err != nil || p.GetPolicy().GetBaseTtl().AsDuration() != ttl):
		k.t.Errorf("%s: got %v, %v; want %v", project, p, err, ttl)
	}
}

// TestPoliciesOutliveTheProcess: a process that is started in an outage knows every
// project's policy, also those that it was never asked for, and those that have none;
// changes by this replica at once, those by others after the next reading.
func TestPoliciesOutliveTheProcess(t *testing.T) {
	k := newKeeper(t, 100)
	for n := range 30 {
		k.set(k.inner, fmt.Sprint("p", n), time.Duration(n+1)*time.Minute)
	}
	k.restart(storagetest.Works)
	k.untilKept("the policies are read", nil)
	k.restart(storagetest.Refuses)
	k.want("p7", 8*time.Minute)
	k.want("p29", 30*time.Minute)
	k.want("none", 0)

	k.restart(storagetest.Works)
	before := k.file()
	k.set(k, "p7", time.Hour)
	k.untilKept("a change of ours", before)
	before = k.file()
	if err := k.DeletePolicy(t.Context(), "p8"); err != nil {
		t.Fatal(err)
	}
	k.untilKept("a deletion of ours", before)
	k.set(k.inner, "p9", 2*time.Hour)
	before = k.file()
	k.want("p9", 2*time.Hour)
	k.untilKept("another's change that we read", before)
	k.restart(storagetest.Refuses)
	k.want("p7", time.Hour)
	k.want("p8", 0)
	k.want("p9", 2*time.Hour)
	k.stop()
}

// TestDoubtedPolicies: of a project whose change may or may not have been made,
// nothing is known, also after a restart.
func TestDoubtedPolicies(t *testing.T) {
	k := newKeeper(t, 100)
	k.set(k.inner, "p", time.Minute)
	k.restart(storagetest.Works)
	k.untilKept("the policies are read", nil)
	before := k.file()
	k.below.Set(storagetest.Refuses)
	if _, err := k.SetPolicy(t.Context(), "p", &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Hour)}); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatal(err)
	}
	k.want("p", -1)
	k.untilKept("the doubt", before)
	k.restart(storagetest.Refuses)
	k.want("p", -1)
	k.want("other", -1) // it may be the one that is in doubt
	k.stop()
}

// TestPoliciesBeyondTheBound: of a project that is not among those that are kept
// nothing is known.
func TestPoliciesBeyondTheBound(t *testing.T) {
	k := newKeeper(t, 5)
	for n := range 8 {
		k.set(k.inner, fmt.Sprint("p", n), time.Minute)
	}
	k.restart(storagetest.Works)
	k.untilKept("the policies are read", nil)
	k.restart(storagetest.Refuses)
	k.want("p0", time.Minute)
	k.want("p7", -1)
	k.want("none", -1)
	k.stop()
}

// TestOldPoliciesAreNotBelieved: not for longer than what else is remembered.
func TestOldPoliciesAreNotBelieved(t *testing.T) {
	k := newKeeper(t, 100)
	k.set(k.inner, "p", time.Minute)
	k.restart(storagetest.Works)
	k.untilKept("the policies are read", nil)
	k.stop()
	k.clock.Advance(49 * time.Hour)
	k.restart(storagetest.Refuses)
	k.want("p", -1)
	k.want("none", -1)
	k.stop()
}

// TestDamagedPolicies: a file that was cut or changed anywhere is not believed, said
// so, and replaced.
func TestDamagedPolicies(t *testing.T) {
	k := newKeeper(t, 100)
	k.set(k.inner, "p", time.Minute)
	k.restart(storagetest.Works)
	k.untilKept("the policies are read", nil)
	k.stop()
	good := k.file()
	for at := range good {
		for name, bad := range map[string][]byte{"cut": good[:at], "changed": append(append(bytes.Clone(good[:at]), good[at]^1), good[at+1:]...)} {
			if err := os.WriteFile(k.path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			k.log.Reset()
			k.restart(storagetest.Refuses)
			k.want("p", -1)
			k.stop()
			if !bytes.Contains(k.log.Bytes(), []byte("cannot be read")) {
				t.Fatalf("%s at %d: not logged", name, at)
			}
		}
	}
	k.restart(storagetest.Works)
	k.untilKept("the policies are read", k.file())
	k.restart(storagetest.Refuses)
	k.want("p", time.Minute)
	k.stop()
}
