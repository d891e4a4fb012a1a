package storagetest

import "time"

// Until waits until done says so, and fails the test when it does not within
// 20 s.
func Until(t interface {
	Helper()
	Fatalf(format string, args ...any)
}, what string, done func() bool,
) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
