package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// repairing is a store whose repairs report their progress and then wait for what
// finish brings.
type repairing struct {
	storage.Store
	finish chan error
}

func (r *repairing) Repair(ctx context.Context, q storage.RepairQuery) (storage.RepairResult, error) {
	so := storage.RepairResult{Keys: 500, Total: 1000, Sessions: 100, Restored: 7, Dropped: 3, Skipped: 2}
	for range 1000 {
		q.Report(so)
	}
	select {
	case err := <-r.finish:
		so.Done = err == nil
		return so, err
	case <-ctx.Done():
		return so, ctx.Err()
	}
}

// TestRepairIndexes: the progress is reported, but not each time that there is
// some; a second repair is refused while one runs, and what fails is no success.
func TestRepairIndexes(t *testing.T) {
	below := &repairing{finish: make(chan error, 1)}
	e := newEnvOver(t, func(_ *env, s storage.Store) storage.Store {
		below.Store = s
		return below
	})
	admin := sessionv1.NewAdminServiceClient(e.conn)
	start := func(ctx context.Context) (first *sessionv1.RepairIndexesResponse, rest func() ([]*sessionv1.RepairIndexesResponse, error)) {
		t.Helper()
		stream, err := admin.RepairIndexes(ctx, &sessionv1.RepairIndexesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if first, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		return first, func() (all []*sessionv1.RepairIndexesResponse, err error) {
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return all, nil
				}
				if err != nil {
					return all, err
				}
				all = append(all, m)
			}
		}
	}

	first, rest := start(t.Context())
	if first.GetDone() || first.GetKeys() != 500 || first.GetTotalKeys() != 1000 || first.GetSessions() != 100 ||
		first.GetRestored() != 7 || first.GetDropped() != 3 || first.GetSkipped() != 2 {
		t.Errorf("the first report: %v", first)
	}
	second, err := admin.RepairIndexes(t.Context(), &sessionv1.RepairIndexesRequest{})
	if err == nil {
		_, err = second.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second repair: %v", err)
	}
	below.finish <- nil
	all, err := rest()
	if err != nil || len(all) == 0 || !all[len(all)-1].GetDone() || len(all) > 10 {
		t.Errorf("%d more reports, the last %v, %v", len(all), all[max(0, len(all)-1):], err)
	}

	_, rest = start(t.Context())
	below.finish <- fmt.Errorf("%w: a node does not answer", storage.ErrUnavailable)
	if all, err := rest(); status.Code(err) != codes.Unavailable {
		t.Errorf("a repair that failed: %v, %v", all, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	_, _ = start(ctx)
	cancel()
	deadline := time.Now().Add(10 * time.Second)
	for { // the one whose caller has left makes room
		stream, err := admin.RepairIndexes(t.Context(), &sessionv1.RepairIndexesRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil {
			below.finish <- nil
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a caller has left: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}
