// Package journal accepts writes while the store under it cannot answer, keeps
// them on disk, and replays them when it can again.
//
// A write is acknowledged once it is fsynced here. The sessions it is about are
// then read from, and written to, a private embedded store until everything
// that was accepted for them has reached the store underneath, in order; so a
// caller of this replica sees what it was told, and every rule is the embedded
// store's rather than a second copy of it.
package journal
