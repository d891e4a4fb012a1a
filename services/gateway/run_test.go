package gateway_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/gateway"
)

func configOf(t *testing.T, args ...string) (gateway.Config, error) {
	t.Helper()
	var cfg gateway.Config
	fs := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return cfg, cfg.Validate()
}

func TestConfig(t *testing.T) {
	cfg, err := configOf(t)
	if err != nil || cfg.HTTPAddr != "127.0.0.1:8080" || cfg.StoreAddr != "127.0.0.1:9090" || cfg.ActivityAddr != "127.0.0.1:9091" ||
		cfg.PollInterval != 5*time.Second || cfg.MaxBody != 4<<20 || len(cfg.CORSOrigins) != 0 {
		t.Errorf("defaults: got %+v, %v", cfg, err)
	}
	for arg, flag := range map[string]string{
		"--poll-interval=-1s": "--poll-interval", "--max-waiters=0": "--max-waiters", "--max-body=10": "--max-body",
		"--trusted-proxies=10.0.0.0/8,nonsense": "--trusted-proxies", "--http-addr=0.0.0.0:8080": "--http-addr", "--auth=magic": "--auth",
	} {
		if _, err := configOf(t, arg); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(flag, "--")) {
			t.Errorf("%s: got %v, want an error that names %s", arg, err, flag)
		}
	}
	if _, err := configOf(t, "--max-body=1", "--max-waiters=0"); err == nil || !strings.Contains(err.Error(), "max-body") || !strings.Contains(err.Error(), "max-waiters") {
		t.Errorf("want every mistake at once, got %v", err)
	}
	if _, err := configOf(t, "--http-addr=0.0.0.0:8080", "--insecure"); err != nil {
		t.Errorf("--insecure allows it: got %v", err)
	}
}

func TestRunServesUntilItIsStopped(t *testing.T) {
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	_ = lis.Close()
	cfg, err := configOf(t, "--http-addr="+addr, "--store-addr=127.0.0.1:1", "--activity-addr=127.0.0.1:1", "--grace=2s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- gateway.Run(ctx, cfg, telemetry.Nop()) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for until := time.Now().Add(10 * time.Second); ; {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("healthz: got %d", resp.StatusCode)
			}
			break
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("got %v, want an end in order", err)
	}
	// The address of somebody else is an error, not a wait.
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg.HTTPAddr = taken.Addr().String()
	if err := gateway.Run(t.Context(), cfg, telemetry.Nop()); err == nil {
		t.Error("serving on a taken address: got no error")
	}
}
