package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	goruntime "runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/health"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/lifecycle"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway"
)

// pollersEnv makes the test program the callers of BenchmarkPoll.
const pollersEnv = "STOKER_BENCH_POLLERS"

// pollRun is a task for the pollers.
type pollRun struct {
	Addr           string
	Callers, Calls int
}

// quiet is a store in which nothing happens.
type quiet struct {
	sessionv1.UnimplementedStorageServiceServer
}

func (quiet) ListEvents(_ context.Context, req *sessionv1.ListEventsRequest) (*sessionv1.ListEventsResponse, error) {
	return &sessionv1.ListEventsResponse{NextCursor: req.GetAfter(), PollAfter: durationpb.New(5 * time.Second)}, nil
}

// BenchmarkPoll measures what a poll with nothing new costs the process of
// `stoker run`, the store's own work aside: the callers are a process of their
// own. "bare" is a handler in a mux as the gateway's, and nothing else.
func BenchmarkPoll(b *testing.B) {
	ask, sink := startPollers(b)
	addrs := map[string]string{"bare": barePolls(b), "stoker": stokerPolls(b, sink)}
	for _, n := range []int{1, 64} {
		for _, name := range []string{"bare", "stoker"} {
			b.Run(fmt.Sprintf("callers=%d/%s", n, name), func(b *testing.B) {
				if name == "stoker" {
					defer lifecycle.KeepHeapRoom(lifecycle.HeapRoom)()
				}
				run := pollRun{Addr: addrs[name], Callers: n, Calls: 2000}
				ask(run)
				goruntime.GC()
				var before, after goruntime.MemStats
				var from, to syscall.Rusage
				goruntime.ReadMemStats(&before)
				_ = syscall.Getrusage(syscall.RUSAGE_SELF, &from)
				b.ResetTimer()
				run.Calls = b.N
				ask(run)
				b.StopTimer()
				_ = syscall.Getrusage(syscall.RUSAGE_SELF, &to)
				goruntime.ReadMemStats(&after)
				b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "allocs/call")
				b.ReportMetric(float64(to.Utime.Nano()+to.Stime.Nano()-from.Utime.Nano()-from.Stime.Nano())/float64(b.N), "cpu-ns/call")
			})
		}
	}
}

func barePolls(b *testing.B) string {
	b.Helper()
	mux := runtime.NewServeMux()
	if err := mux.HandlePath(http.MethodGet, "/v1/sessions/{id}/events", func(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"events":[],"nextCursor":"1795526267536-0","pollAfter":"5s","truncated":false}`)
	}); err != nil {
		b.Fatal(err)
	}
	return servedHTTP(b, func(ctx context.Context, lis net.Listener) error {
		srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
		defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
		return srv.Serve(lis)
	})
}

func stokerPolls(b *testing.B, sink string) string {
	b.Helper()
	for name, value := range map[string]string{
		"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": sink,
		"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01",
	} {
		b.Setenv(name, value)
	}
	tel, err := telemetry.Setup(b.Context(), telemetry.Config{ServiceName: "bench", Version: "1", LogLevel: "info", LogFormat: "json"}, b.Output())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	authn, err := (&auth.Config{Mode: auth.ModeNone}).Authenticator()
	if err != nil {
		b.Fatal(err)
	}
	local, err := rpc.NewLocal(rpc.ServerConfig{Telemetry: tel, Auth: authn}, health.NewServer())
	if err != nil {
		b.Fatal(err)
	}
	sessionv1.RegisterStorageServiceServer(local, quiet{})
	b.Cleanup(func() { _ = local.Stop(time.Second) })
	g, err := gateway.New(b.Context(), gateway.Config{PollInterval: time.Nanosecond, MaxWaiters: 100, MaxBody: 64 << 10, Grace: time.Second}, tel, local, local)
	if err != nil {
		b.Fatal(err)
	}
	return servedHTTP(b, g.Serve)
}

func servedHTTP(b *testing.B, serve func(context.Context, net.Listener) error) string {
	b.Helper()
	lis, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(ctx, lis)
	}()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	return lis.Addr().String()
}

// startPollers starts the callers, which also take exported traces.
func startPollers(b *testing.B) (ask func(pollRun), sink string) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0]) //nolint:gosec // this program
	cmd.Env = append(os.Environ(), pollersEnv+"=1")
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
	to, from := json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))
	if err := from.Decode(&sink); err != nil {
		b.Fatal(err)
	}
	return func(run pollRun) {
		var failed string
		if err := to.Encode(run); err != nil {
			b.Fatal(err)
		}
		if err := from.Decode(&failed); err != nil || failed != "" {
			b.Fatal(err, failed)
		}
	}, sink
}

// bePollers serves runs until its input ends.
func bePollers() {
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
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	for {
		var run pollRun
		if err := in.Decode(&run); err != nil {
			return
		}
		_ = out.Encode(run.do(client))
	}
}

func (r pollRun) do(client *http.Client) (failed string) {
	var all sync.WaitGroup
	errs := make(chan string, r.Callers)
	for w := range r.Callers {
		// One session each, or one would take another's turn.
		url := fmt.Sprintf("http://%s/v1/sessions/0123456789abcdefghijklmn%02d/events?after=1795526267536-0", r.Addr, w)
		all.Go(func() {
			for i := w; i < r.Calls; i += r.Callers {
				if err := poll(client, url); err != "" {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	return <-errs
}

func poll(client *http.Client, url string) (failed string) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Sprint(resp.Status, string(body), err)
	}
	return ""
}
