package fallback

import (
	"hash/maphash"
	"sync"
)

// users finds the remembered sessions of a user, by userKey. Anonymous
// sessions have no user.
type users struct {
	seed   maphash.Seed
	shards [64]userShard
}

type userShard struct {
	mu  sync.Mutex
	ids map[string]map[string]struct{}
}

func newUsers() *users {
	u := &users{seed: maphash.MakeSeed()}
	for i := range u.shards {
		u.shards[i].ids = map[string]map[string]struct{}{}
	}
	return u
}

// userKey names a user of a project; NUL is in neither.
func userKey(project, user string) string { return project + "\x00" + user }

func (u *users) shard(key string) *userShard {
	return &u.shards[maphash.String(u.seed, key)%uint64(len(u.shards))]
}

func (u *users) add(project, user, id string) {
	if user == "" {
		return
	}
	key := userKey(project, user)
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.ids[key] == nil {
		sh.ids[key] = map[string]struct{}{}
	}
	sh.ids[key][id] = struct{}{}
}

func (u *users) remove(project, user, id string) {
	if user == "" {
		return
	}
	key := userKey(project, user)
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.ids[key], id)
	if len(sh.ids[key]) == 0 {
		delete(sh.ids, key)
	}
}

// of returns the ids of a user's sessions.
func (u *users) of(project, user string) []string {
	key := userKey(project, user)
	sh := u.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	out := make([]string, 0, len(sh.ids[key]))
	for id := range sh.ids[key] {
		out = append(out, id)
	}
	return out
}
