package redis

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Access says how to log in to Redis and Sentinel, besides what the URL says, and how
// to verify them. Files are read anew for every connection.
type Access struct {
	// PasswordFile holds the password of the URL's user.
	PasswordFile string
	// SentinelUser and SentinelPasswordFile are the login to the Sentinels. Sentinels
	// never get the login of the URL.
	SentinelUser, SentinelPasswordFile string
	// TLSCA holds the certificates, in PEM, of the authorities to trust instead of
	// the system's.
	TLSCA string
	// TLSCert and TLSKey hold the client certificate and its key, in PEM.
	TLSCert, TLSKey string
	// TLSServerName is the name that certificates must have instead of the host that
	// is connected to.
	TLSServerName string
}

// maxSecretFile bounds how much of a file is read.
const maxSecretFile = 1 << 20

// access gives each new connection its login and its TLS configuration. Where a file
// cannot be used, the last usable content stays in force: rotation may replace files
// one after the other, and those that belong together do not match in between.
type access struct {
	files  Access
	target target

	mu                         sync.Mutex
	password, sentinelPassword string
	authorities                *x509.CertPool
	certificate                *tls.Certificate
}

// newAccess reads every file once, and returns what is wrong with the combination of
// options, joined.
func newAccess(files Access, t target) (*access, error) {
	a := &access{files: files, target: t}
	if errs := a.checkCombination(); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if err := a.checkFiles(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *access) checkCombination() []error {
	var errs []error
	bad := func(flag, got, want string) {
		errs = append(errs, fmt.Errorf("--%s: got %s, want %s", flag, got, want))
	}
	unwanted := func(flag, got, want string) {
		if got != "" {
			bad(flag, got, want)
		}
	}
	f, t := a.files, a.target
	switch {
	case f.PasswordFile != "" && t.password != "":
		bad("redis-password-file", f.PasswordFile, "no file: --redis-url has a password")
	case f.PasswordFile == "" && t.user != "" && t.password == "":
		bad("redis-url", "a user without a password", "user:password@, or --redis-password-file; a password alone is written :password@")
	}
	if t.master == "" {
		const want = "none: --redis-url names no Sentinel (redis+sentinel:// or rediss+sentinel://)"
		unwanted("redis-sentinel-user", f.SentinelUser, want)
		unwanted("redis-sentinel-password-file", f.SentinelPasswordFile, want)
	} else if f.SentinelUser != "" && f.SentinelPasswordFile == "" {
		bad("redis-sentinel-password-file", `""`, "a file: --redis-sentinel-user needs a password")
	}
	if !t.tls {
		const want = "none: --redis-url does not use TLS (rediss://, rediss+cluster:// or rediss+sentinel://)"
		unwanted("redis-tls-ca", f.TLSCA, want)
		unwanted("redis-tls-cert", f.TLSCert, want)
		unwanted("redis-tls-key", f.TLSKey, want)
		unwanted("redis-tls-server-name", f.TLSServerName, want)
	}
	switch {
	case f.TLSCert != "" && f.TLSKey == "":
		bad("redis-tls-key", `""`, "the key of --redis-tls-cert")
	case f.TLSKey != "" && f.TLSCert == "":
		bad("redis-tls-cert", `""`, "the certificate of --redis-tls-key")
	}
	return errs
}

// checkFiles returns which files cannot be used now.
func (a *access) checkFiles() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(
		readPassword("redis-password-file", a.files.PasswordFile, &a.password),
		readPassword("redis-sentinel-password-file", a.files.SentinelPasswordFile, &a.sentinelPassword),
		a.readAuthorities(), a.readCertificate())
}

// credentials returns the login to Redis; both empty for none.
func (a *access) credentials(ctx context.Context) (user, password string, err error) {
	if a.files.PasswordFile == "" {
		return a.target.user, a.target.password, ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = readPassword("redis-password-file", a.files.PasswordFile, &a.password) // the last one stays
	return a.target.user, a.password, ctx.Err()
}

// sentinelCredentials returns the login to the Sentinels; both empty for none.
func (a *access) sentinelCredentials(ctx context.Context) (user, password string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = readPassword("redis-sentinel-password-file", a.files.SentinelPasswordFile, &a.sentinelPassword) // the last one stays
	return a.files.SentinelUser, a.sentinelPassword, ctx.Err()
}

// tlsConfig returns the configuration of a new connection to a host, nil for one
// without TLS.
func (a *access) tlsConfig(host string) (*tls.Config, error) {
	if !a.target.tls {
		return nil, nil //nolint:nilnil // a connection without TLS has no configuration
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.readAuthorities() // the last ones stay
	_ = a.readCertificate()
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: a.authorities}
	if a.files.TLSServerName != "" {
		config.ServerName = a.files.TLSServerName
	}
	if a.certificate != nil {
		config.Certificates = []tls.Certificate{*a.certificate}
	}
	return config, nil
}

// readPassword reads a file without the line break at its end, if a file is named.
func readPassword(flag, path string, dst *string) error {
	if path == "" {
		return nil
	}
	content, err := readBounded(path)
	if err != nil {
		return fmt.Errorf("--%s: %w", flag, err)
	}
	content = bytes.TrimSuffix(bytes.TrimSuffix(content, []byte("\n")), []byte("\r"))
	switch {
	case len(content) == 0:
		return fmt.Errorf("--%s: got %s, which is empty, want a file with a password", flag, path)
	case bytes.ContainsAny(content, "\r\n"):
		return fmt.Errorf("--%s: got %s, which has several lines, want a file with a password alone", flag, path)
	}
	*dst = string(content)
	return nil
}

func (a *access) readAuthorities() error {
	if a.files.TLSCA == "" {
		return nil
	}
	content, err := readBounded(a.files.TLSCA)
	if err != nil {
		return fmt.Errorf("--redis-tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return fmt.Errorf("--redis-tls-ca: got %s, which holds no certificate, want certificates in PEM", a.files.TLSCA)
	}
	a.authorities = pool
	return nil
}

func (a *access) readCertificate() error {
	if a.files.TLSCert == "" || a.files.TLSKey == "" {
		return nil
	}
	cert, err := readBounded(a.files.TLSCert)
	if err != nil {
		return fmt.Errorf("--redis-tls-cert: %w", err)
	}
	key, err := readBounded(a.files.TLSKey)
	if err != nil {
		return fmt.Errorf("--redis-tls-key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("--redis-tls-cert and --redis-tls-key: %s and %s: %w", a.files.TLSCert, a.files.TLSKey, err)
	}
	a.certificate = &pair
	return nil
}

// readBounded reads a small file. Opening a pipe could block every connection.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(content) > maxSecretFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSecretFile)
	}
	return content, err
}

// CheckAccess returns what is wrong with the URL, with the logins and with their
// files.
func (o Options) CheckAccess() error {
	t, err := parseURL(o.URL)
	if err != nil {
		return err
	}
	_, err = newAccess(o.Access, t)
	return err
}
