package redistest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"os"
	"strings"
	"testing"
)

// TestTLSServerDemandsACertificate: a client is served with a certificate of the
// authority, and refused without.
func TestTLSServerDemandsACertificate(t *testing.T) {
	authority := NewAuthority(t)
	server := StartTLS(t, authority, authority.Issue(t, "redis.test"))
	pem, err := os.ReadFile(authority.File)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate of the authority")
	}
	ping := func(certs ...tls.Certificate) (string, error) {
		conn, err := tls.Dial("tcp", server.TLSAddr, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: "redis.test", Certificates: certs})
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
			return "", err
		}
		buf := make([]byte, 100)
		n, err := conn.Read(buf)
		return string(buf[:n]), err
	}
	own := authority.Issue(t)
	pair, err := tls.LoadX509KeyPair(own.CertFile, own.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ping(pair); err != nil || !strings.HasPrefix(got, "+PONG") {
		t.Errorf("with a certificate: %q %v", got, err)
	}
	if got, err := ping(); err == nil {
		t.Errorf("without a certificate: %q, want an error", got)
	}
}
