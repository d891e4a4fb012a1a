package standalone

import (
	"errors"
	"time"

	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/activity"
	"github.com/livinguniverse/stoker/services/gateway"
	"github.com/livinguniverse/stoker/services/sessionstore"
)

// Config is the configuration of all services in one process.
type Config struct {
	GRPCAddr string
	Grace    time.Duration
	Demo     bool

	Store    sessionstore.Config
	Activity activity.Config
	Gateway  gateway.Config

	Auth      auth.Config
	Telemetry telemetry.Config
}

// Default returns the configuration without flags.
func Default() Config { return Config{Activity: activity.Default()} }

// Flags registers every flag with its default.
func (c *Config) Flags(fs *pflag.FlagSet) {
	c.Gateway.HTTPFlags(fs)
	fs.StringVar(&c.GRPCAddr, "grpc-addr", "127.0.0.1:9090", "`address` to serve gRPC on")
	fs.DurationVar(&c.Grace, "grace", 10*time.Second, "how long running calls may go on at shutdown")
	fs.BoolVar(&c.Demo, "demo", false, "make sample traffic")
	c.Store.StoreFlags(fs)
	c.Activity.EmbeddedFlags(fs)
	c.Auth.Flags(fs)
	c.Telemetry.Flags(fs)
}

// Validate returns everything that is wrong, joined.
func (c *Config) Validate() error {
	c.Gateway.Grace, c.Gateway.Auth, c.Gateway.Telemetry = c.Grace, c.Auth, c.Telemetry
	c.Activity.ShutdownGrace, c.Activity.Auth, c.Activity.Telemetry = c.Grace, c.Auth, c.Telemetry
	// The activity service is joined in memory and listens nowhere.
	c.Activity.AdminAddr = ""
	return errors.Join(
		c.Auth.Validate(), c.Telemetry.Validate(),
		c.Auth.CheckListen("http-addr", c.Gateway.HTTPAddr), c.Auth.CheckListen("grpc-addr", c.GRPCAddr),
		c.Gateway.ValidateHTTP(), c.Store.ValidateStore(), c.Activity.ValidateEmbedded(),
	)
}
