package memory

// Waits says whether somebody waits for a session's events.
func (s *Store) Waits(id string) bool {
	sh := s.shardOf(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.sessions[id] != nil && sh.sessions[id].log.wake != nil
}
