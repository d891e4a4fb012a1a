package redis

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestRowsAreReadInBothProtocols(t *testing.T) {
	for name, null := range map[string]string{"RESP2": "$-1\r\n", "RESP3": "_\r\n"} {
		raw := "*12\r\n$4\r\na\r\nb\r\n$0\r\n\r\n" + strings.Repeat(null, 9) + "$2\r\n42\r\n"
		r, err := parseRow([]byte(raw))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if string(r[0]) != "a\r\nb" || r[1] == nil || len(r[1]) != 0 || r[2] != nil || number(r[11]) != 42 {
			t.Errorf("%s: %q", name, r)
		}
		for cut := range len(raw) - len("\r\n") {
			if _, err := parseRow([]byte(raw[:cut])); !errors.Is(err, errReply) {
				t.Errorf("%s: cut at %d: %v", name, cut, err)
			}
		}
	}
	for _, raw := range []string{"", "*11\r\n", "+OK\r\n", "*12\r\n:1\r\n", "*12\r\n$-2\r\n", "*12\r\n$9999999999\r\nab\r\n"} {
		if _, err := parseRow([]byte(raw)); !errors.Is(err, errReply) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func FuzzRow(f *testing.F) {
	f.Add([]byte("*12\r\n$1\r\na\r\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = parseRow(raw) })
}

func TestLabelsComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "labels")
		raw, err := encodeLabels(labels)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeLabels(raw)
		if err != nil || !maps.Equal(got, labels) {
			t.Fatalf("%q came back as %q, %v", labels, got, err)
		}
		for cut := 1; cut < len(raw); cut++ {
			_, _ = decodeLabels(raw[:cut]) // a torn one must not end the process
		}
	})
}
