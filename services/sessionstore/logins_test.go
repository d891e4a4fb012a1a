package sessionstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/pkg/config"
)

func TestLoginFlags(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	password, empty, two := write("password", "s3cr3tpw\n"), write("empty", "\n"), write("two", "s3cr3tpw\nother\n")
	const (
		plain    = "--redis-url=redis://ann@h"
		secure   = "--redis-url=rediss://h"
		sentinel = "--redis-url=redis+sentinel://h/m"
	)
	for name, c := range map[string]struct {
		args []string
		want []string // each in the error; none for a configuration that is valid
	}{
		"URL alone":                   {[]string{"--redis-url=redis://ann:s3cr3tpw@h"}, nil},
		"file":                        {[]string{plain, "--redis-password-file=" + password}, nil},
		"file without user":           {[]string{"--redis-url=redis://h", "--redis-password-file=" + password}, nil},
		"sentinel":                    {[]string{sentinel, "--redis-sentinel-user=bob", "--redis-sentinel-password-file=" + password}, nil},
		"sentinel, default user":      {[]string{sentinel, "--redis-sentinel-password-file=" + password}, nil},
		"server name":                 {[]string{secure, "--redis-tls-server-name=redis.example"}, nil},
		"malformed URL":               {[]string{"--redis-url=redis://ann:s3cr3tpw"}, []string{"--redis-url: the port is not"}},
		"no URL":                      {[]string{"--storage=redis"}, []string{"--redis-url: got \"\", want a URL"}},
		"user alone":                  {[]string{plain}, []string{"--redis-url: got a user without a password, want user:password@, or --redis-password-file"}},
		"password twice":              {[]string{"--redis-url=redis://ann:s3cr3tpw@h", "--redis-password-file=" + password}, []string{"--redis-password-file: got " + password + ", want no file: --redis-url has a password"}},
		"missing file":                {[]string{plain, "--redis-password-file=" + dir + "/none"}, []string{"--redis-password-file: ", "no such file"}},
		"directory":                   {[]string{plain, "--redis-password-file=" + dir}, []string{"--redis-password-file: ", "not a regular file"}},
		"empty file":                  {[]string{plain, "--redis-password-file=" + empty}, []string{"--redis-password-file: got " + empty + ", which is empty"}},
		"two lines":                   {[]string{plain, "--redis-password-file=" + two}, []string{"--redis-password-file: got " + two + ", which has several lines"}},
		"sentinel login, no sentinel": {[]string{plain, "--redis-password-file=" + password, "--redis-sentinel-user=bob", "--redis-sentinel-password-file=" + password}, []string{"--redis-sentinel-user: got bob, want none", "--redis-sentinel-password-file: got " + password + ", want none"}},
		"sentinel user alone":         {[]string{sentinel, "--redis-sentinel-user=bob"}, []string{"--redis-sentinel-password-file: got \"\", want a file"}},
		"sentinel file empty":         {[]string{sentinel, "--redis-sentinel-password-file=" + empty}, []string{"--redis-sentinel-password-file: got " + empty}},
		"TLS files without TLS": {
			[]string{"--redis-url=redis://h", "--redis-tls-ca=ca", "--redis-tls-cert=c", "--redis-tls-key=k", "--redis-tls-server-name=n"},
			[]string{"--redis-tls-ca: got ca, want none", "--redis-tls-cert: got c, want none", "--redis-tls-key: got k, want none", "--redis-tls-server-name: got n, want none"},
		},
		"certificate without key": {[]string{secure, "--redis-tls-cert=c"}, []string{"--redis-tls-key: got \"\", want the key of --redis-tls-cert"}},
		"key without certificate": {[]string{secure, "--redis-tls-key=k"}, []string{"--redis-tls-cert: got \"\", want the certificate of --redis-tls-key"}},
		"authorities missing":     {[]string{secure, "--redis-tls-ca=" + dir + "/none"}, []string{"--redis-tls-ca: ", "no such file"}},
		"authorities not PEM":     {[]string{secure, "--redis-tls-ca=" + password}, []string{"--redis-tls-ca: got " + password + ", which holds no certificate"}},
		"certificate not PEM":     {[]string{secure, "--redis-tls-cert=" + password, "--redis-tls-key=" + password}, []string{"--redis-tls-cert and --redis-tls-key: "}},
		"embedded": {
			[]string{"--redis-password-file=f", "--redis-sentinel-user=u", "--redis-sentinel-password-file=f", "--redis-tls-ca=f", "--redis-tls-cert=f", "--redis-tls-key=f", "--redis-tls-server-name=n"},
			[]string{"--redis-password-file: got f", "--redis-sentinel-user: got u", "--redis-sentinel-password-file: got f", "--redis-tls-ca: got f", "--redis-tls-cert: got f", "--redis-tls-key: got f", "--redis-tls-server-name: got n"},
		},
	} {
		err := configured(t, c.args...).Validate()
		if (err == nil) != (len(c.want) == 0) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err == nil {
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", name, err, want)
			}
		}
		if strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v repeats the password", name, err)
		}
	}
}

// TestLoginFlagsFromEverywhere: each is also an environment variable and a key of the
// configuration file, as all flags are.
func TestLoginFlagsFromEverywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("redis-tls-ca: from-file\nredis-sentinel-user: from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("STOKER_REDIS_PASSWORD_FILE", "from-environment")
	t.Setenv("STOKER_REDIS_SENTINEL_USER", "from-environment")
	var cfg Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	cfg.Flags(fs)
	config.AddFlag(fs)
	if err := fs.Parse([]string{"--config=" + path}); err != nil {
		t.Fatal(err)
	}
	if err := config.Load(fs); err != nil {
		t.Fatal(err)
	}
	if a := cfg.RedisAccess; a.PasswordFile != "from-environment" || a.SentinelUser != "from-environment" || a.TLSCA != "from-file" {
		t.Errorf("%+v", a)
	}
}
