package activity

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

// Config of the activity service. Start from Default.
type Config struct {
	// Addresses of the process: see Serve. An embedded service needs none.
	GRPCAddr  string
	AdminAddr string
	StoreAddr string

	// Group and Consumer say who reads the feed; replicas share a group. An
	// empty consumer name is made up from host, process and chance.
	Group    string
	Consumer string
	// FlushInterval is how long activity waits for more to be reported with
	// it, where it does not matter at once: 1 ms to 1 h.
	FlushInterval time.Duration
	// Rules is a YAML file of activity rules that replaces the built-in ones.
	Rules string
	// Window is how many feed entries may be unacknowledged, 16 to 1,000,000.
	Window int
	// MaxTracked bounds the sessions in memory. Where more are in use, those
	// that have nothing to report and were seen longest ago are forgotten, and
	// read from the store again when they are next used; with none of those, no
	// more of the feed is taken until the store has answered.
	MaxTracked int
	// ForgetAfter is how long a session with nothing to report is kept.
	ForgetAfter time.Duration
	// CallTimeout bounds a call of the store, ShutdownGrace the end of Run.
	CallTimeout   time.Duration
	ShutdownGrace time.Duration

	Auth      auth.Config
	Telemetry telemetry.Config
}

// Default returns the configuration of a process of its own on one machine.
func Default() Config {
	return Config{
		GRPCAddr: "127.0.0.1:9091", AdminAddr: "127.0.0.1:9191", StoreAddr: "127.0.0.1:9090",
		Group: "activity", FlushInterval: 15 * time.Second, Window: 65536,
		MaxTracked: 1_000_000, ForgetAfter: 30 * time.Minute,
		CallTimeout: 5 * time.Second, ShutdownGrace: 10 * time.Second,
		Auth:      auth.Config{Mode: "none"},
		Telemetry: telemetry.Config{ServiceName: "stoker-activity", LogLevel: "info", LogFormat: "text"},
	}
}

// Flags binds every setting to a flag.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.GRPCAddr, "grpc-addr", c.GRPCAddr, "`address` to serve ActivityService on")
	fs.StringVar(&c.AdminAddr, "admin-addr", c.AdminAddr, "`address` of /healthz, /readyz and /metrics; empty for none")
	fs.StringVar(&c.StoreAddr, "store-addr", c.StoreAddr, "`address` of the session store")
	c.EmbeddedFlags(fs)
	fs.DurationVar(&c.ShutdownGrace, "shutdown-grace", c.ShutdownGrace, "how long to report what is pending before the process ends")
	c.Auth.Flags(fs)
	c.Telemetry.Flags(fs)
}

// EmbeddedFlags binds the settings that matter inside another process, too.
func (c *Config) EmbeddedFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Group, "group", c.Group, "consumer group of the feed; replicas share one")
	fs.StringVar(&c.Consumer, "consumer", c.Consumer, "name in the group, different for each replica; generated where empty")
	fs.DurationVar(&c.FlushInterval, "flush-interval", c.FlushInterval, "report a session's activity at most once in this time, unless it extends the session")
	fs.StringVar(&c.Rules, "rules", c.Rules, "YAML `file` with the activityRules of sessions that have none of their own")
	fs.IntVar(&c.Window, "window", c.Window, "feed entries that may be unacknowledged at a time")
	fs.IntVar(&c.MaxTracked, "max-tracked", c.MaxTracked, "sessions to track at most; beyond, the least recently used are read from the store again")
	fs.DurationVar(&c.ForgetAfter, "forget-after", c.ForgetAfter, "stop tracking a session not seen for this long")
	fs.DurationVar(&c.CallTimeout, "store-timeout", c.CallTimeout, "time for one call of the session store")
}

var nameInFeed = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// Validate returns everything that is wrong, joined, each with its flag.
func (c *Config) Validate() error {
	errs := []error{c.ValidateEmbedded(), c.Auth.Validate(), c.Auth.CheckListen("grpc-addr", c.GRPCAddr), c.Telemetry.Validate()}
	for flag, addr := range map[string]string{"grpc-addr": c.GRPCAddr, "store-addr": c.StoreAddr} {
		if addr == "" {
			errs = append(errs, fmt.Errorf("--%s: got \"\", want host:port", flag))
		}
	}
	if c.AdminAddr != "" {
		errs = append(errs, c.Auth.CheckListen("admin-addr", c.AdminAddr))
	}
	return errors.Join(errs...)
}

// ValidateEmbedded is Validate for what matters inside another process.
func (c *Config) ValidateEmbedded() error {
	var errs []error
	check := func(ok bool, flag string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("--%s: got %v, want %s", flag, value, want))
		}
	}
	check(nameInFeed.MatchString(c.Group) && len(c.Group) <= 64, "group", c.Group, "letters, digits, '.', '_' and '-', at most 64")
	check(c.Consumer == "" || (nameInFeed.MatchString(c.Consumer) && len(c.Consumer) <= 128), "consumer", c.Consumer, "letters, digits, '.', '_' and '-', at most 128")
	check(c.FlushInterval >= time.Millisecond && c.FlushInterval <= time.Hour, "flush-interval", c.FlushInterval, "1ms to 1h")
	check(c.Window >= 16 && c.Window <= 1_000_000, "window", c.Window, "16 to 1000000")
	check(c.MaxTracked >= 1, "max-tracked", c.MaxTracked, "at least 1")
	check(c.ForgetAfter >= time.Second, "forget-after", c.ForgetAfter, "at least 1s")
	check(c.CallTimeout >= time.Millisecond, "store-timeout", c.CallTimeout, "at least 1ms")
	check(c.ShutdownGrace >= 0, "shutdown-grace", c.ShutdownGrace, "0 or more")
	if _, err := c.rules(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Config) rules() (*policy.Rules, error) {
	if c.Rules == "" {
		return policy.Compile(policy.DefaultRules())
	}
	r, err := policy.ReadRules(c.Rules)
	if err != nil {
		return nil, fmt.Errorf("--rules: %w", err)
	}
	return r, nil
}
