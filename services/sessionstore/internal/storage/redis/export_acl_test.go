package redis

import (
	"context"
	"time"
)

// LeastRights are the ACL rules of a user with exactly the documented rights.
func LeastRights() []string {
	rules := []string{"resetkeys", "~" + keyPattern, "resetchannels", "-@all"}
	for _, r := range rights {
		rules = append(rules, "+"+r.name)
	}
	return rules
}

// RightsOfServer are the commands that a single server needs, and those that work
// without.
func RightsOfServer() (required, unneeded []string) {
	for _, r := range rights {
		switch r.need {
		case optional:
			unneeded = append(unneeded, r.name)
		case always, inDatabase:
			required = append(required, r.name)
		case inCluster:
		}
	}
	return required, unneeded
}

// RightsOfCluster are the commands that a cluster needs besides those of a server.
func RightsOfCluster() (out []string) {
	for _, r := range rights {
		if r.need == inCluster {
			out = append(out, r.name)
		}
	}
	return out
}

// SetCheckEvery sets how often rights and files are checked.
func (o *Options) SetCheckEvery(d time.Duration) { o.checkEvery = d }

// CheckRights checks the rights once.
func CheckRights(ctx context.Context, s *Store) error { return s.checkRights(ctx) }
