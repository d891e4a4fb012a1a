package sessionstore

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// callersEnv makes the test program the callers of BenchmarkCall.
const callersEnv = "STOKER_BENCH_CALLERS"

const (
	callGet    = "GetSession"
	callAppend = "AppendEvents"
	// appended is how many events an AppendEvents has.
	appended = 50
	// callConns is how many connections the callers share.
	callConns = 4
)

// callRun is a task for the callers.
type callRun struct {
	Addr, What, Session string
	Callers, Calls      int
}

// callers is the process that calls, and takes the traces that are exported.
type callers struct {
	Sink string
	in   *json.Encoder
	out  *json.Decoder
}

func startCallers(b *testing.B) *callers {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0]) //nolint:gosec // this program
	cmd.Env = append(os.Environ(), callersEnv+"=1")
	cmd.Stderr = b.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	c := &callers{in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out))}
	if err := c.out.Decode(&c.Sink); err != nil {
		b.Fatal(err)
	}
	return c
}

// call makes the calls of a run, and returns when they are done.
func (c *callers) call(b *testing.B, run callRun) {
	b.Helper()
	if err := c.in.Encode(run); err != nil {
		b.Fatal(err)
	}
	var failed string
	if err := c.out.Decode(&failed); err != nil || failed != "" {
		b.Fatal(err, failed)
	}
}

// beCallers serves runs until its input ends.
func beCallers() {
	lis, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return
	}
	sink := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/x-protobuf") // an empty answer is a full success
	})}
	go func() { _ = sink.Serve(lis) }()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	_ = out.Encode("http://" + lis.Addr().String() + "/v1/traces")
	for {
		var run callRun
		if err := in.Decode(&run); err != nil {
			return
		}
		failed := ""
		if err := run.do(); err != nil {
			failed = err.Error()
		}
		_ = out.Encode(failed)
	}
}

func (r callRun) do() error {
	var all sync.WaitGroup
	failed := make(chan error, r.Callers)
	conns := make([]*grpc.ClientConn, min(callConns, r.Callers))
	for i := range conns {
		var err error
		if conns[i], err = grpc.NewClient(r.Addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			return err
		}
		defer conns[i].Close()
	}
	for w := range r.Callers {
		client := sessionv1.NewStorageServiceClient(conns[w%len(conns)])
		all.Go(func() {
			for i := w; i < r.Calls; i += r.Callers {
				if err := r.one(client); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	return <-failed
}

func (r callRun) one(client sessionv1.StorageServiceClient) error {
	ctx := context.Background()
	if r.What == callGet {
		_, err := client.GetSession(ctx, &sessionv1.GetSessionRequest{Id: r.Session})
		return err
	}
	// Ids and times are left to the server, so that no event is a repetition.
	req := &sessionv1.AppendEventsRequest{Id: r.Session, Events: make([]*sessionv1.Event, appended)}
	for i := range req.GetEvents() {
		req.Events[i] = &sessionv1.Event{Type: "input:text", Source: "bench", Data: structpb.NewStringValue(strings.Repeat("stoker ", 14))}
	}
	_, err := client.AppendEvents(ctx, req)
	return err
}
