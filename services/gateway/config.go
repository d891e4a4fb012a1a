package gateway

import (
	"errors"
	"fmt"
	"time"

	"github.com/realclientip/realclientip-go"
	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/telemetry"
)

// Config is the gateway's configuration.
type Config struct {
	HTTPAddr     string
	StoreAddr    string
	ActivityAddr string
	Grace        time.Duration

	PollInterval   time.Duration
	MaxWaiters     int
	MaxBody        int64
	TrustedProxies []string
	CORSOrigins    []string

	Auth      auth.Config
	Telemetry telemetry.Config
}

// Flags registers every flag with its default.
func (c *Config) Flags(fs *pflag.FlagSet) {
	c.HTTPFlags(fs)
	fs.StringVar(&c.StoreAddr, "store-addr", "127.0.0.1:9090", "`address` of the session store")
	fs.StringVar(&c.ActivityAddr, "activity-addr", "127.0.0.1:9091", "`address` of the activity service")
	fs.DurationVar(&c.Grace, "grace", 10*time.Second, "how long running requests may go on at shutdown")
	c.Auth.Flags(fs)
	c.Telemetry.Flags(fs)
}

// HTTPFlags registers the flags that are about HTTP alone.
func (c *Config) HTTPFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.HTTPAddr, "http-addr", "127.0.0.1:8080", "`address` to serve REST, events and the page on")
	fs.DurationVar(&c.PollInterval, "poll-interval", 5*time.Second, "least time between two polls that do not wait, per client and session")
	fs.IntVar(&c.MaxWaiters, "max-waiters", 100, "most long polls and streams of one client at the same time")
	fs.Int64Var(&c.MaxBody, "max-body", 4<<20, "most bytes of a request's body")
	fs.StringSliceVar(&c.TrustedProxies, "trusted-proxies", nil, "`ranges` (CIDR) of proxies whose X-Forwarded-For is believed")
	fs.StringSliceVar(&c.CORSOrigins, "cors-origins", nil, "`origins` that browsers may call from; none by default")
}

// Validate returns everything that is wrong, joined.
func (c *Config) Validate() error {
	return errors.Join(c.Auth.Validate(), c.Auth.CheckListen("http-addr", c.HTTPAddr), c.Telemetry.Validate(), c.ValidateHTTP())
}

// ValidateHTTP is Validate for what is about HTTP alone.
func (c *Config) ValidateHTTP() error {
	var errs []error
	bad := func(flag string, got any, want string) {
		errs = append(errs, fmt.Errorf("--%s: got %v, want %s", flag, got, want))
	}
	if c.PollInterval < 0 {
		bad("poll-interval", c.PollInterval, "at least 0s")
	}
	if c.MaxWaiters < 1 {
		bad("max-waiters", c.MaxWaiters, "at least 1")
	}
	if c.MaxBody < 1024 {
		bad("max-body", c.MaxBody, "at least 1024")
	}
	if _, err := realclientip.AddressesAndRangesToIPNets(c.TrustedProxies...); err != nil {
		bad("trusted-proxies", c.TrustedProxies, "addresses or CIDR ranges")
	}
	return errors.Join(errs...)
}
