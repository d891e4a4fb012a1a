package docmark_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/livinguniverse/stoker/services/standalone/internal/docmark"
)

func TestWrite(t *testing.T) {
	for name, tt := range map[string]struct{ before, after string }{
		"replaced":     {"a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n", "a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n"},
		"of several":   {"<!-- y: begin -->1<!-- y: end --><!-- x: begin --><!-- x: end -->", "<!-- y: begin -->1<!-- y: end --><!-- x: begin -->\n\nnew\n\n<!-- x: end -->"},
		"no end":       {"<!-- x: begin -->", ""},
		"wrong order":  {"<!-- x: end --><!-- x: begin -->", ""},
		"another name": {"<!-- y: begin --><!-- y: end -->", ""},
	} {
		path := filepath.Join(t.TempDir(), "doc.md")
		if err := os.WriteFile(path, []byte(tt.before), 0o600); err != nil {
			t.Fatal(err)
		}
		err := docmark.Write(path, "x", "new\n")
		want := tt.after
		if want == "" {
			want = tt.before
		}
		got, rerr := os.ReadFile(path)
		if rerr != nil || string(got) != want || (err == nil) != (tt.after != "") {
			t.Errorf("%s: got %q, %v, %v", name, got, err, rerr)
		}
	}
	if docmark.Write(filepath.Join(t.TempDir(), "none"), "x", "") == nil {
		t.Error("a file that is not there was written")
	}
}
