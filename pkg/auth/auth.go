// Package auth says who calls. It is the one place where a call's principal is
// made; handlers only read it.
package auth

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/pflag"
)

// ModeNone lets everybody in, on loopback only.
const ModeNone = "none"

// Config says how callers prove who they are.
type Config struct {
	// Mode is "none".
	Mode string
	// Insecure allows mode none on addresses beyond loopback.
	Insecure bool
}

// Flags registers --auth and --insecure.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Mode, "auth", ModeNone, "how callers prove who they are: none (loopback only)")
	fs.BoolVar(&c.Insecure, "insecure", false, "allow --auth none on addresses beyond loopback")
}

// Validate returns what is wrong with the configuration.
func (c *Config) Validate() error {
	if c.Mode != ModeNone {
		return fmt.Errorf("--auth: got %q, want %q, the only mode of this version", c.Mode, ModeNone)
	}
	return nil
}

// CheckListen refuses to serve unauthenticated callers from other machines.
func (c *Config) CheckListen(flag, addr string) error {
	if c.Insecure || c.Mode != ModeNone || addr == "" || loopback(addr) {
		return nil
	}
	return fmt.Errorf("--%s: got %q, which other machines can reach without authentication; listen on 127.0.0.1, or give --insecure", flag, addr)
}

func loopback(addr string) bool {
	if strings.HasPrefix(addr, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Principal is who calls.
type Principal struct {
	// User and Project are who the caller acts for; empty when anonymous.
	User    string
	Project string
	// Service marks an internal service; its events have the origin SYSTEM.
	Service bool
	Scopes  []string
	// Anonymous callers were not asked who they are, and may do everything.
	Anonymous bool
}

// Owns says whether the principal may reach what belongs to a user in a
// project. This is the only place where ownership is decided.
func (p Principal) Owns(project, user string) bool {
	return p.Anonymous || p.Service || (p.User != "" && p.User == user && p.Project == project)
}

// Authenticator finds out who sent a request.
type Authenticator interface {
	// Authenticate returns the caller of ctx's call, or an error with the code
	// UNAUTHENTICATED. It reads what it needs with
	// metadata.ValueFromIncomingContext: all of the metadata would be copied.
	Authenticate(ctx context.Context) (Principal, error)
}

// Authenticator returns what the configuration asks for.
func (c *Config) Authenticator() (Authenticator, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return everybody{}, nil
}

type everybody struct{}

func (everybody) Authenticate(context.Context) (Principal, error) {
	return Principal{Anonymous: true}, nil
}

type principalKey struct{}

// principalContext carries a principal within itself: one allocation for both.
type principalContext struct {
	context.Context //nolint:containedctx // it is one

	principal Principal
}

func (c *principalContext) Value(key any) any {
	if key == (principalKey{}) {
		return &c.principal
	}
	return c.Context.Value(key)
}

// NewContext returns a context that carries the principal.
func NewContext(ctx context.Context, p Principal) context.Context {
	return &principalContext{ctx, p}
}

// FromContext returns the caller; the zero principal, which owns nothing, when
// nobody was authenticated.
func FromContext(ctx context.Context) Principal {
	if p, ok := ctx.Value(principalKey{}).(*Principal); ok {
		return *p
	}
	return Principal{}
}
