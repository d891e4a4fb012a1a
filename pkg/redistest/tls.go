package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redisproc"
)

// Authority signs the certificates of a test.
type Authority struct {
	// File holds its certificate, in PEM.
	File string

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority for a test and its subtests.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{File: filepath.Join(t.TempDir(), "authority.pem"), key: newKey(t)}
	serial := big.NewInt(time.Now().UnixNano())
	// Authorities of one name would be taken for one another.
	a.cert = &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "authority " + serial.String()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.File, "CERTIFICATE", der)
	return a
}

// Certificate is a certificate and its key in files, as programs take them.
type Certificate struct{ CertFile, KeyFile string }

// Issue makes a certificate for names and addresses, of a server and a client alike.
func (a *Authority) Issue(t testing.TB, names ...string) Certificate {
	t.Helper()
	dir := t.TempDir()
	c := Certificate{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	a.Renew(t, c, names...)
	return c
}

// Renew puts a new certificate and key into the files of one.
func (a *Authority) Renew(t testing.TB, c Certificate, names ...string) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "redistest"}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, c.CertFile, "CERTIFICATE", der)
	writePEM(t, c.KeyFile, "PRIVATE KEY", secret)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TLSServer is a server that takes TLS on a port of its own. Addr is still without,
// for the test itself.
type TLSServer struct {
	*Server
	// TLSAddr is host:port.
	TLSAddr string
}

// StartTLS is Start for a server that shows a certificate, and demands one of the
// authority from its clients.
func StartTLS(t testing.TB, authority *Authority, cert Certificate, args ...string) *TLSServer {
	t.Helper()
	addr, err := redisproc.FreeAddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	tls := []string{"--tls-port", port, "--tls-ca-cert-file", authority.File, "--tls-cert-file", cert.CertFile, "--tls-key-file", cert.KeyFile, "--tls-auth-clients", "yes"}
	return &TLSServer{Start(t, append(tls, args...)...), addr}
}

// Show makes the server show another certificate, and demand one of another authority.
func (s *TLSServer) Show(t testing.TB, authority *Authority, cert Certificate) {
	t.Helper()
	_, err := command(t.Context(), s.Addr, "CONFIG", "SET", "tls-ca-cert-file", authority.File, "tls-cert-file", cert.CertFile, "tls-key-file", cert.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
}
