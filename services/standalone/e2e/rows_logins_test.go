//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// The store's login in the rows about logins. The default user stays as it is, for
// what looks at the server beside the store.
const (
	faultUser   = "stoker"
	oldPassword = "old-secret"
	newPassword = "new-secret"
)

// loginFaults are rows of the matrix in which Redis refuses the store's login, or what
// it is allowed to do.
var loginFaults = []fault{
	{
		name: "password rotated, and the file 2 s later", expect: "writes rejected at once until the file is there, reads answered from memory", opens: true, fails: true, reads: true, lasts: 2 * time.Second,
		start: startWithPasswordFile,
		inject: func(t *testing.T, e *faultEnv) {
			e.setUser(t, "resetpass", ">"+newPassword)
			e.endConnections(t)
		},
		heal:  func(t *testing.T, e *faultEnv) { e.writePassword(t, newPassword) },
		after: checkOldPassword,
	},
	{
		name: "password rotated, both valid meanwhile", expect: "nobody notices", lasts: 2 * time.Second,
		start: startWithPasswordFile,
		inject: func(t *testing.T, e *faultEnv) {
			e.setUser(t, ">"+newPassword)
			e.writePassword(t, newPassword)
			e.setUser(t, "<"+oldPassword)
			e.endConnections(t)
		},
		heal:  func(*testing.T, *faultEnv) {},
		after: checkOldPassword,
	},
	{
		name: "ACL user switched off, then on", expect: "writes rejected at once until it is on, reads answered from memory", opens: true, fails: true, reads: true, lasts: 2 * time.Second,
		start: startWithPassword,
		inject: func(t *testing.T, e *faultEnv) {
			e.setUser(t, "off")
			e.endConnections(t)
		},
		heal: func(t *testing.T, e *faultEnv) { e.setUser(t, "on") },
	},
	{
		name: "ACL user's rights withdrawn, then given back", expect: "writes rejected at once until they are back, reads answered from memory", opens: true, fails: true, reads: true, lasts: 2 * time.Second,
		start:  startWithPassword,
		inject: func(t *testing.T, e *faultEnv) { e.setUser(t, "-@all") },
		heal:   func(t *testing.T, e *faultEnv) { e.setUser(t, "+@all") },
	},
}

// startWithPassword gives the store a user of its own, by the URL.
func startWithPassword(t *testing.T, e *faultEnv) []string {
	t.Helper()
	e.startServer(t)
	e.setUser(t, "on", ">"+oldPassword, "~*", "&*", "+@all")
	return []string{"--redis-url", "redis://" + faultUser + ":" + oldPassword + "@" + e.redis.Addr + "/0"}
}

// startWithPasswordFile gives the store a user of its own, with the password in a file.
func startWithPasswordFile(t *testing.T, e *faultEnv) []string {
	t.Helper()
	e.startServer(t)
	e.setUser(t, "on", ">"+oldPassword, "~*", "&*", "+@all")
	e.password = filepath.Join(t.TempDir(), "password")
	e.writePassword(t, oldPassword)
	return []string{"--redis-url", "redis://" + faultUser + "@" + e.redis.Addr + "/0", "--redis-password-file", e.password}
}

func (e *faultEnv) setUser(t *testing.T, rules ...string) {
	t.Helper()
	must(t, e.raw.ACLSetUser(t.Context(), faultUser, rules...).Err())
}

// endConnections ends the store's connections: a login that was right when it was
// made is not checked again.
func (e *faultEnv) endConnections(t *testing.T) {
	t.Helper()
	n, err := e.raw.ClientKillByFilter(t.Context(), "USER", faultUser).Result()
	if must(t, err); n == 0 {
		t.Fatal("the store had no connection")
	}
}

// writePassword replaces the file in one step, as mounted secrets are.
func (e *faultEnv) writePassword(t *testing.T, password string) {
	t.Helper()
	next := e.password + ".next"
	must(t, os.WriteFile(next, []byte(password+"\n"), 0o600))
	must(t, os.Rename(next, e.password))
}

// checkOldPassword makes sure that the former password is refused by now.
func checkOldPassword(t *testing.T, e *faultEnv) {
	t.Helper()
	former := goredis.NewClient(&goredis.Options{Addr: e.redis.Addr, Username: faultUser, Password: oldPassword, MaxRetries: -1})
	defer former.Close()
	if err := former.Ping(t.Context()).Err(); err == nil {
		t.Error("the former password is still accepted: nothing was rotated")
	}
}
