package redis

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/livinguniverse/stoker/pkg/redistest"
)

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, string(content))
}

// TestPasswordFileIsReadAnew: each connection gets what the file has now, and what it
// had last while it cannot be used, which is reported.
func TestPasswordFileIsReadAnew(t *testing.T) {
	dir := t.TempDir()
	file, sentinelFile := filepath.Join(dir, "password"), filepath.Join(dir, "sentinel")
	writeFile(t, file, "first\r\n")
	writeFile(t, sentinelFile, " with spaces \n")
	target, err := parseURL("redis+sentinel://ann@h/m")
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAccess(Access{PasswordFile: file, SentinelUser: "bob", SentinelPasswordFile: sentinelFile}, target)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what, want string) {
		t.Helper()
		if user, password, err := a.credentials(t.Context()); user != "ann" || password != want || err != nil {
			t.Errorf("%s: %q %q %v, want ann and %q", what, user, password, err, want)
		}
	}
	check("at first", "first")
	if user, password, err := a.sentinelCredentials(t.Context()); user != "bob" || password != " with spaces " || err != nil {
		t.Errorf("sentinel: %q %q %v", user, password, err)
	}
	writeFile(t, file, "second")
	check("rewritten", "second")
	for what, change := range map[string]func(){
		"empty":     func() { writeFile(t, file, "\n") },
		"two lines": func() { writeFile(t, file, "third\nfourth\n") },
		"gone": func() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		change()
		check(what, "second")
		if err := a.checkFiles(); err == nil || !strings.Contains(err.Error(), "--redis-password-file: ") || strings.Contains(err.Error(), "third") {
			t.Errorf("%s: %v, want an error that names the flag", what, err)
		}
	}
	writeFile(t, file, "fifth\n")
	check("back", "fifth")
	if err := a.checkFiles(); err != nil {
		t.Error(err)
	}
}

// TestCertificatesAreReadAnew: while the files of a rotation do not match, the last
// pair stays in force.
func TestCertificatesAreReadAnew(t *testing.T) {
	authority := redistest.NewAuthority(t)
	pair, next := authority.Issue(t, "a.test"), authority.Issue(t, "b.test")
	target, err := parseURL("rediss://h")
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAccess(Access{TLSCert: pair.CertFile, TLSKey: pair.KeyFile, TLSCA: authority.File}, target)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		config, err := a.tlsConfig("h")
		if err != nil || len(config.Certificates) != 1 || config.ServerName != "h" || config.RootCAs == nil {
			t.Fatalf("%+v %v", config, err)
		}
		return config.Certificates[0].Leaf.DNSNames[0]
	}
	if got := name(); got != "a.test" {
		t.Errorf("at first the certificate of %s", got)
	}
	copyFile(t, next.CertFile, pair.CertFile)
	if got := name(); got != "a.test" {
		t.Errorf("with another key the certificate of %s", got)
	}
	if err := a.checkFiles(); err == nil || !strings.Contains(err.Error(), "--redis-tls-cert and --redis-tls-key: ") {
		t.Errorf("%v, want an error that names the flags", err)
	}
	copyFile(t, next.KeyFile, pair.KeyFile)
	if got := name(); got != "b.test" {
		t.Errorf("at last the certificate of %s", got)
	}
}
