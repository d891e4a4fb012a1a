package sessionstore

import (
	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
)

// redisURLHelp lists every scheme.
const redisURLHelp = "`URL` of Redis: redis://[user:password@]host[:port][/db] for one server, " +
	"redis+cluster://[user:password@]host[:port][,host:port...] for Redis Cluster (one seed address is enough), " +
	"redis+sentinel://[user:password@]host[:port][,host:port...]/master[/db] for a master behind Sentinel; " +
	"rediss://, rediss+cluster:// and rediss+sentinel:// are the same over TLS; redis:// with several hosts is a cluster; " +
	"in a user or password write % / ? # and @ as %25 %2F %3F %23 and %40"

// loginFlags are about how to log in to Redis and how to verify it.
func (c *Config) loginFlags(fs *pflag.FlagSet) {
	a := &c.RedisAccess
	fs.StringVar(&a.PasswordFile, "redis-password-file", "", "`file` with the password of the user in --redis-url, instead of one there; read again for each new connection")
	fs.StringVar(&a.SentinelUser, "redis-sentinel-user", "", "ACL `user` to log in to the Sentinels with; empty for the default user")
	fs.StringVar(&a.SentinelPasswordFile, "redis-sentinel-password-file", "", "`file` with the password for the Sentinels, which do not get the one for Redis; empty for no login")
	fs.StringVar(&a.TLSCA, "redis-tls-ca", "", "PEM `file` with the certificate authorities to trust for Redis and Sentinel; empty for the system's; read again for each new connection")
	fs.StringVar(&a.TLSCert, "redis-tls-cert", "", "PEM `file` with the client certificate for Redis and Sentinel, its chain included; read again for each new connection")
	fs.StringVar(&a.TLSKey, "redis-tls-key", "", "PEM `file` with the private key of --redis-tls-cert")
	fs.StringVar(&a.TLSServerName, "redis-tls-server-name", "", "`name` that the certificates of Redis and Sentinel must have; empty for the host that is connected to")
}

// checkLogins returns what is wrong with the URL, the logins and their files.
func (c *Config) checkLogins() []error {
	if c.Backend() == StorageRedis {
		if c.RedisURL == "" {
			return nil // ValidateStore says so
		}
		if err := (redis.Options{URL: c.RedisURL, Access: c.RedisAccess}).CheckAccess(); err != nil {
			return []error{err}
		}
		return nil
	}
	var errs []error
	a := c.RedisAccess
	for _, f := range []struct{ flag, got string }{
		{"redis-password-file", a.PasswordFile},
		{"redis-sentinel-user", a.SentinelUser},
		{"redis-sentinel-password-file", a.SentinelPasswordFile},
		{"redis-tls-ca", a.TLSCA},
		{"redis-tls-cert", a.TLSCert},
		{"redis-tls-key", a.TLSKey},
		{"redis-tls-server-name", a.TLSServerName},
	} {
		if f.got != "" {
			errs = append(errs, wrong(f.flag, f.got, "none: the embedded store has no Redis to log in to"))
		}
	}
	return errs
}
