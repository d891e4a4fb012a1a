package standalone_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/standalone"
	"github.com/livinguniverse/stoker/services/standalone/internal/operator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is where the banner goes; it can be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) find(re *regexp.Regexp) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := re.FindStringSubmatch(o.buf.String()); m != nil {
		return m[1]
	}
	return ""
}

var (
	restAt = regexp.MustCompile(`REST +(http://[^/]+)/`)
	grpcAt = regexp.MustCompile(`gRPC +(\S+)`)
)

// running starts everything on free ports and returns where; it ends with the
// test, and must end cleanly.
func running(t *testing.T, args ...string) (rest, grpc string) {
	t.Helper()
	cfg := standalone.Default()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse(append([]string{"--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--grace", "5s"}, args...)); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var out output
	done := make(chan error, 1)
	go func() { done <- standalone.Run(ctx, cfg, telemetry.Nop(), &out) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("does not stop")
		}
	})
	for begin := time.Now(); out.find(grpcAt) == ""; {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("does not start")
		}
		time.Sleep(time.Millisecond)
	}
	return out.find(restAt), out.find(grpcAt)
}

func send(t *testing.T, method, url, body string) map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s %v", method, url, resp.Status, raw, err)
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return out
}

// TestTheWholePath: create, append, and see the life extended by what counts
// as activity, in one process, durable and not.
func TestTheWholePath(t *testing.T) {
	for name, args := range map[string][]string{"memory": nil, "durable": {"--data-dir", t.TempDir()}, "demo": {"--demo"}} {
		t.Run(name, func(t *testing.T) {
			rest, grpc := running(t, args...)
			s := send(t, http.MethodPost, rest+"/v1/sessions", `{"user":"ann","ttlPolicy":{"baseTtl":"60s","extension":"30s","extendBelow":"61s","maxExtensions":1}}`)
			at := rest + "/v1/sessions/" + s["id"].(string)
			send(t, http.MethodPost, at+"/events", `{"events":[{"type":"registry:updated"},{"type":"input:text"}]}`)
			for begin := time.Now(); send(t, http.MethodGet, at, "")["extensionCount"] != 1.0; {
				if time.Since(begin) > 10*time.Second {
					t.Fatal("activity does not extend the session")
				}
				time.Sleep(5 * time.Millisecond)
			}
			var list bytes.Buffer
			for _, cmd := range operator.Commands() {
				if cmd.Name() != "explain" {
					continue
				}
				cmd.SetOut(&list)
				cmd.SetArgs([]string{s["id"].(string), "--addr", grpc})
				if err := cmd.ExecuteContext(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for _, want := range []string{"EXTENDED", "registry:updated is automated"} {
				if !strings.Contains(list.String(), want) {
					t.Errorf("explain says %s, want %s in it", list.String(), want)
				}
			}
		})
	}
}

func TestConfigNamesEveryMistake(t *testing.T) {
	cfg := standalone.Default()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse([]string{"--http-addr", "0.0.0.0:8080", "--shards", "0", "--flush-interval", "0s", "--max-body", "1", "--base-ttl", "0s", "--auth", "jwt", "--log-level", "loud"}); err != nil {
		t.Fatal(err)
	}
	err := cfg.Validate()
	for _, flag := range []string{"--shards", "--flush-interval", "--max-body", "baseTtl", "--auth", "--log-level"} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%v: want %s in it", err, flag)
		}
	}
	cfg.Auth.Mode = "none"
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "--http-addr") {
		t.Errorf("%v: want --http-addr in it", err)
	}
}
