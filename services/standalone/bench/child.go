package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/pkg/redisproc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/sessionstore"
	"github.com/livinguniverse/stoker/services/standalone"
)

const childName = "child"

// hello is the first line that a child writes: where it can be reached.
type hello struct {
	GRPC  string `json:"grpc,omitempty"`
	HTTP  string `json:"http,omitempty"`
	Redis string `json:"redis,omitempty"`
}

// usage is a child's answer to every line that it reads: what it has used.
type usage struct {
	CPU        time.Duration `json:"cpu"`
	Mallocs    uint64        `json:"mallocs"`
	HeapBytes  uint64        `json:"heapBytes"`
	StackBytes uint64        `json:"stackBytes"`
	Goroutines int           `json:"goroutines"`
}

// The questions to a child: what it uses now, and what it uses once all garbage
// is gone.
const (
	askUsage = "usage"
	askClean = "clean"
)

// child serves until ctx ends; it says where as soon as it knows.
type child func(ctx context.Context, args []string, ready func(hello) error) error

func kinds() map[string]child {
	return map[string]child{
		"redis": serveRedis, "echo": serveEcho, "plain": servePlain, "store": serveStore, "run": serveRun,
	}
}

// Child is one of the measured processes: its kind, then its arguments. It
// answers questions that come in, and ends when there is nobody to ask any
// more, so that nothing is left behind whatever ends the parent.
func Child(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	serve := kinds()[args[0]]
	if serve == nil {
		return fmt.Errorf("no child of kind %q", args[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	say := func(v any) error {
		mu.Lock()
		defer mu.Unlock()
		return json.NewEncoder(out).Encode(v)
	}
	go func() {
		defer cancel()
		for lines := bufio.NewScanner(in); lines.Scan(); {
			if lines.Text() == askClean {
				runtime.GC()
				runtime.GC() // what finalizers held is gone after the second
			}
			if u, err := used(); err != nil || say(u) != nil {
				return
			}
		}
	}()
	err := serve(ctx, args[1:], func(h hello) error { return say(h) })
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func used() (usage, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return usage{}, err
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{
		CPU:     time.Duration(r.Utime.Nano() + r.Stime.Nano()),
		Mallocs: m.Mallocs, HeapBytes: m.HeapAlloc, StackBytes: m.StackInuse, Goroutines: runtime.NumGoroutine(),
	}, nil
}

// temporary calls do with a directory that is there for that long.
func temporary(do func(dir string) error) error {
	dir, err := os.MkdirTemp("", "stoker-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return do(dir)
}

// serveRedis keeps a redis-server and ends it.
func serveRedis(ctx context.Context, args []string, ready func(hello) error) error {
	return temporary(func(dir string) error {
		s, err := redisproc.Launch(ctx, dir, args...)
		if err != nil {
			return err
		}
		if err := ready(hello{Redis: s.Addr}); err != nil {
			return err
		}
		<-ctx.Done()
		return s.Stop()
	})
}

// serveStore is the session store, as its own binary runs it. --durable gives
// it a directory for as long as it runs.
func serveStore(ctx context.Context, args []string, ready func(hello) error) error {
	addr, err := redisproc.FreeAddr(ctx)
	if err != nil {
		return err
	}
	var cfg sessionstore.Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	cfg.Flags(fs)
	durable := fs.Bool("durable", false, "")
	if err := fs.Parse(append([]string{"--grpc-addr", addr, "--admin-addr", "", "--log-level", "error"}, args...)); err != nil {
		return err
	}
	cfg.Telemetry.ServiceName = "stoker-sessionstore"
	return temporary(func(dir string) error {
		if *durable {
			cfg.DataDir = dir
		}
		if err := cfg.Validate(); err != nil {
			return err
		}
		return serveWith(ctx, cfg.Telemetry, hello{GRPC: addr}, ready, func(ctx context.Context, tel *telemetry.Telemetry) error {
			return sessionstore.Run(ctx, cfg, tel)
		})
	})
}

// serveRun is `stoker run`.
func serveRun(ctx context.Context, args []string, ready func(hello) error) error {
	grpcAddr, err := redisproc.FreeAddr(ctx)
	if err != nil {
		return err
	}
	httpAddr, err := redisproc.FreeAddr(ctx)
	if err != nil {
		return err
	}
	cfg := standalone.Default()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse(append([]string{"--grpc-addr", grpcAddr, "--http-addr", httpAddr, "--log-level", "error", "--grace", "1s"}, args...)); err != nil {
		return err
	}
	cfg.Telemetry.ServiceName = "stoker"
	if err := cfg.Validate(); err != nil {
		return err
	}
	return serveWith(ctx, cfg.Telemetry, hello{GRPC: grpcAddr, HTTP: httpAddr}, ready, func(ctx context.Context, tel *telemetry.Telemetry) error {
		return standalone.Run(ctx, cfg, tel, io.Discard)
	})
}

// serveWith says hello while the service starts: who calls waits for it.
func serveWith(ctx context.Context, cfg telemetry.Config, h hello, ready func(hello) error, run func(context.Context, *telemetry.Telemetry) error) error {
	if err := ready(h); err != nil {
		return err
	}
	return telemetry.Run(ctx, cfg, os.Stderr, func(tel *telemetry.Telemetry) error { return run(ctx, tel) })
}
