//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
)

// deployment is a running Stoker: its gateway's base URL and the places where
// its metrics are.
type deployment struct {
	http            string
	grpc            string
	activityGRPC    string
	storeMetrics    string
	activityMetrics string
	redisAddr       string
}

// process is one of our binaries; output is kept for the failure message.
type process struct {
	cmd  *exec.Cmd
	out  lockedBuffer
	done chan struct{}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs bin/<name> and ends it with the test.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	path, err := filepath.Abs("../../../bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return startBinary(t, path, args...)
}

// startBinary runs a binary and ends it with the test.
func startBinary(t *testing.T, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.stop(t, syscall.SIGTERM)
		if t.Failed() {
			t.Logf("%s printed:\n%s", path, p.out.String())
		}
	})
	return p
}

// stop ends the process by a signal and waits for it; a process that ignores
// SIGTERM for 20 s is a failure.
func (p *process) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Errorf("%s did not end within 20 s of %v", p.cmd.Path, sig)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// freeAddr returns a loopback address that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// ready waits until a URL answers 200.
func ready(t *testing.T, url string, p *process) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		resp, err := http.Get(url)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended: %s", p.cmd.Path, p.out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Fatalf("%s was not ready within 30 s", url)
}

// embedded starts `stoker run` on the embedded store.
func embedded(t *testing.T, args ...string) deployment {
	t.Helper()
	d := deployment{http: "http://" + freeAddr(t), grpc: freeAddr(t)}
	d.activityGRPC = d.grpc
	d.storeMetrics, d.activityMetrics = d.http+"/metrics", d.http+"/metrics"
	p := start(t, "stoker", append([]string{"run", "--http-addr", d.http[len("http://"):], "--grpc-addr", d.grpc}, args...)...)
	ready(t, d.http+"/readyz", p)
	return d
}

// separate starts the three binaries on a Redis of their own. extra holds more
// arguments by binary.
func separate(t *testing.T, extra map[string][]string) deployment {
	t.Helper()
	redis := redistest.Start(t)
	store, storeAdmin := freeAddr(t), freeAddr(t)
	act, actAdmin := freeAddr(t), freeAddr(t)
	gw := freeAddr(t)
	s := start(t, "sessionstore", append([]string{
		"--grpc-addr", store, "--admin-addr", storeAdmin,
		"--storage", "redis", "--redis-url", redis.URL(),
	}, extra["sessionstore"]...)...)
	ready(t, "http://"+storeAdmin+"/readyz", s)
	a := start(t, "activity", append([]string{"--grpc-addr", act, "--admin-addr", actAdmin, "--store-addr", store}, extra["activity"]...)...)
	ready(t, "http://"+actAdmin+"/readyz", a)
	g := start(t, "gateway", append([]string{"--http-addr", gw, "--store-addr", store, "--activity-addr", act}, extra["gateway"]...)...)
	ready(t, "http://"+gw+"/readyz", g)
	return deployment{
		http: "http://" + gw, grpc: store, activityGRPC: act, redisAddr: redis.Addr,
		storeMetrics: "http://" + storeAdmin + "/metrics", activityMetrics: "http://" + actAdmin + "/metrics",
	}
}

// run executes a command and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// runAny is run for a command that may fail: what it printed counts.
func runAny(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out)
}
