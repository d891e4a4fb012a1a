package auth

import "testing"

func TestOnlyLoopbackWithoutAuthentication(t *testing.T) {
	for addr, fine := range map[string]bool{
		"127.0.0.1:8080": true, "127.9.9.9:1": true, "[::1]:8080": true, "localhost:8080": true, "unix:/run/x": true, "": true,
		":8080": false, "0.0.0.0:8080": false, "[::]:8080": false, "10.0.0.1:80": false, "example.com:80": false, "127.0.0.1": false,
	} {
		c := Config{Mode: ModeNone}
		if err := c.CheckListen("http-addr", addr); (err == nil) != fine {
			t.Errorf("%q: %v", addr, err)
		}
		c.Insecure = true
		if err := c.CheckListen("http-addr", addr); err != nil {
			t.Errorf("%q with --insecure: %v", addr, err)
		}
	}
}

func TestUnknownModeIsRefused(t *testing.T) {
	c := Config{Mode: "jwt"}
	if _, err := c.Authenticator(); err == nil {
		t.Error("an unsupported mode was accepted")
	}
}

func TestOwnership(t *testing.T) {
	c := Config{Mode: ModeNone}
	a, err := c.Authenticator()
	if err != nil {
		t.Fatal(err)
	}
	anybody, err := a.Authenticate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ann := Principal{User: "ann", Project: "acme"}
	for _, c := range []struct {
		p             Principal
		project, user string
		want          bool
	}{
		{anybody, "acme", "ann", true},
		{Principal{Service: true}, "acme", "ann", true},
		{ann, "acme", "ann", true},
		{ann, "acme", "bob", false},
		{ann, "other", "ann", false},
		{Principal{}, "acme", "ann", false},
		{Principal{}, "", "", false},
	} {
		if got := c.p.Owns(c.project, c.user); got != c.want {
			t.Errorf("%+v owns %s/%s: %v", c.p, c.project, c.user, got)
		}
	}
	if got := FromContext(NewContext(t.Context(), ann)); got.User != "ann" {
		t.Errorf("from the context came %+v", got)
	}
	if got := FromContext(t.Context()); got.Owns("", "ann") {
		t.Error("nobody owns something")
	}
}
