// This file goes when access.go is merged; dialOptions.files is the Access.
package redis

import (
	"context"
	"crypto/tls"
)

// Access is replaced by the one of logins.
type Access struct{}
type access struct{ target target }

func newAccess(_ Access, t target) (*access, error) { return &access{t}, nil }
func (a *access) credentials(context.Context) (string, string, error) {
	return a.target.user, a.target.password, nil
}
func (a *access) sentinelCredentials(context.Context) (string, string, error) { return "", "", nil }
func (a *access) tlsConfig(host string) (*tls.Config, error) {
	if !a.target.tls {
		return nil, nil
	}
	return &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}, nil
}
