//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestEmbeddedStoreOnAFullDisk: the disk of an embedded store fills up. Writes are
// refused, naming the disk and no path; every restart on it starts and answers reads;
// and with room, the store takes writes again without another one.
func TestEmbeddedStoreOnAFullDisk(t *testing.T) {
	d := newTmpfs(t)
	var p *process
	var store sessionv1.StorageServiceClient
	run := func() {
		t.Helper()
		grpc, admin := freeAddr(t), freeAddr(t)
		p = start(t, "sessionstore", "--storage", "memory", "--grpc-addr", grpc, "--admin-addr", admin, "--data-dir", d.dir)
		ready(t, "http://"+admin+"/healthz", p)
		conn, err := rpc.Dial(grpc, telemetry.Nop())
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		store = sessionv1.NewStorageServiceClient(conn)
	}
	run()
	s, err := store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann"})
	must(t, err)
	acknowledged := 0
	write := func(n int) error {
		_, err := store.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: s.GetId(), Events: []*sessionv1.Event{
			{Type: "input:text", Data: structpb.NewStringValue(strings.Repeat("x", n))},
		}})
		if err == nil {
			acknowledged++
		}
		return err
	}
	refused := func(err error) {
		t.Helper()
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the disk of its data directory is full or cannot be written") || strings.Contains(err.Error(), d.dir) {
			t.Errorf("answered %v, want UNAVAILABLE for the disk, without its path", err)
		}
	}
	n := 4000
	for err = write(n); err == nil; err = write(n) {
		if acknowledged > 10_000 {
			t.Fatal("the disk does not get full")
		}
	}
	refused(err)
	for range 5 {
		p.stop(t, syscall.SIGKILL)
		run()
		page, err := store.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: s.GetId(), After: proto.String("0"), Limit: 1000})
		if err != nil || len(page.GetEvents()) < min(acknowledged, 1000) {
			t.Fatalf("%d events of %d, %v", len(page.GetEvents()), acknowledged, err)
		}
		// A restart frees what was not acknowledged, so there may be a little room.
		for err = write(n); err == nil; err = write(n) {
			if acknowledged > 10_000 {
				t.Fatal("the disk is not full")
			}
		}
		refused(err)
	}
	p.stop(t, syscall.SIGKILL)
	d.fill(t)
	run()
	refused(write(1))
	d.more(p)
	eventually(t, 10*time.Second, "the store takes writes", func() bool { return write(n) == nil })
}

// fill leaves no room at all.
func (d disk) fill(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.dir, "filler"))
	must(t, err)
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 512)); err != nil {
			return
		}
	}
}
