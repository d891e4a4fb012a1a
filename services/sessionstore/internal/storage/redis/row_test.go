package redis

import (
	"maps"
	"testing"

	"pgregory.net/rapid"
)

func TestLabelsComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "labels")
		raw, err := encodeLabels(labels)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeLabels(string(raw))
		if err != nil || !maps.Equal(got, labels) {
			t.Fatalf("%q came back as %q, %v", labels, got, err)
		}
		for cut := 1; cut < len(raw); cut++ {
			_, _ = decodeLabels(string(raw[:cut])) // a torn one must not end the process
		}
	})
}
