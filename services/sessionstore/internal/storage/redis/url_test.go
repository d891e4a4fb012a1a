package redis

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]string{
		"redis://localhost":                             "{[localhost:6379]   0  false false}",
		"redis://127.0.0.1:7000/3":                      "{[127.0.0.1:7000]   3  false false}",
		"redis://ann:p%40ss@h:1":                        "{[h:1] ann p@ss 0  false false}",
		"rediss://h:1":                                  "{[h:1]   0  false true}",
		"redis://a:1,b:2,c:3":                           "{[a:1 b:2 c:3]   0  true false}",
		"redis+cluster://a:1":                           "{[a:1]   0  true false}",
		"redis+sentinel://:secret@a:26379,b/mymaster/2": "{[a:26379 b:6379]  secret 2 mymaster false false}",
		"redis://[::1]:6379/0":                          "{[[::1]:6379]   0  false false}",
	} {
		got, err := parseURL(raw)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v %v, want %s", raw, got, err, want)
		}
	}
	for _, raw := range []string{"", "localhost:6379", "http://h", "redis://", "redis://h/x", "redis://h/-1", "redis://a,b/1", "redis+sentinel://a", "redis://%zz:secret@h"} {
		if _, err := parseURL(raw); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("redis://ann:secret@h:1/0")
	f.Add("redis+sentinel://a,b/m/1")
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := parseURL(raw)
		if err == nil && (len(got.addrs) == 0 || got.db < 0) {
			t.Errorf("%q is read as %+v", raw, got)
		}
	})
}
