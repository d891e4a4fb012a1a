package sessionstore

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(callersEnv) != "" {
		beCallers()
		return
	}
	goleak.VerifyTestMain(m,
		// go-redis stops its batch workers after Close has returned.
		goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9.(*AutoPipeliner).flusher"),
		// After failed dials go-redis probes once a second, and looks at whether
		// the pool was closed only between probes.
		goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

func configured(t testing.TB, args ...string) *Config {
	t.Helper()
	var cfg Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &cfg
}

const redisURL = "--redis-url=redis://127.0.0.1:1/0"

func TestOutageFlags(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want []string // each in the error; none for a configuration that is valid
	}{
		"embedded":                  {nil, nil},
		"embedded, durable":         {[]string{"--data-dir=d"}, nil},
		"embedded, near-cache":      {[]string{"--near-cache-sessions=5", "--read-fallback=fail_fast"}, nil},
		"embedded, journal":         {[]string{"--write-fallback=journal", "--data-dir=d"}, []string{"--write-fallback: got journal, want fail_fast: the embedded store"}},
		"redis":                     {[]string{redisURL}, nil},
		"redis, both fail":          {[]string{redisURL, "--read-fallback=fail_fast", "--write-fallback=fail_fast"}, nil},
		"redis, fail with data-dir": {[]string{redisURL, "--write-fallback=fail_fast", "--data-dir=d"}, nil},
		"read cache, too long":      {[]string{redisURL, "--read-cache=1m"}, []string{"--read-cache: got 1m0s, want 0, or 10ms to 10s"}},
		"read cache, embedded":      {[]string{"--read-cache=1s"}, []string{"--read-cache: got 1s, want 0: the embedded store"}},
		"journal without data-dir":  {[]string{redisURL, "--write-fallback=journal"}, []string{"--data-dir: got \"\", want a directory"}},
		"safe redis":                {[]string{redisURL, "--require-safe-redis"}, nil},
		"safe redis, embedded":      {[]string{"--require-safe-redis"}, []string{"--require-safe-redis: got true, want false: the embedded store"}},
		"unknown": {
			[]string{redisURL, "--read-fallback=journal", "--write-fallback=stale"},
			[]string{"--read-fallback: got journal, want stale or fail_fast", "--write-fallback: got stale, want fail_fast or journal"},
		},
		"out of bounds": {
			[]string{redisURL, "--near-cache-sessions=0", "--journal-max-bytes=1000"},
			[]string{"--near-cache-sessions: got 0, want 1 to", "--journal-max-bytes: got 1000, want at least 1048576"},
		},
	} {
		err := configured(t, c.args...).Validate()
		if (err == nil) != (len(c.want) == 0) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", name, err, want)
			}
		}
	}
}

func TestWhoRemembersAndJournals(t *testing.T) {
	for name, c := range map[string]struct {
		args                []string
		remembers, journals bool
	}{
		"embedded":          {[]string{"--data-dir=d"}, false, false},
		"redis":             {[]string{redisURL}, true, false},
		"fail fast":         {[]string{redisURL, "--read-fallback=fail_fast"}, false, false},
		"with a directory":  {[]string{redisURL, "--data-dir=d"}, true, true},
		"journal, no reads": {[]string{redisURL, "--data-dir=d", "--read-fallback=fail_fast"}, true, true},
		"asked not to":      {[]string{redisURL, "--data-dir=d", "--write-fallback=fail_fast"}, true, false},
	} {
		cfg := configured(t, c.args...)
		if cfg.remembers() != c.remembers || cfg.Journals() != c.journals {
			t.Errorf("%s: remembers %v, journals %v", name, cfg.remembers(), cfg.Journals())
		}
	}
}
