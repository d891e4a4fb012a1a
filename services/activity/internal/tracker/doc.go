// Package tracker keeps what the activity service knows: the feed entries that
// are not acknowledged yet, and of each session in use its deadline and the
// activity that still has to be reported. It is a data structure behind one
// mutex, with no goroutines, no I/O and no clock of its own.
//
//	Observe --> unknown session --Unresolved/Resolve--> tracked
//	Observe --> counted activity: pending --Due--> in flight --Applied--> idle
//	Acks: up to the first entry of a shard whose activity has no answer
//
// The first NOT_FOUND for a session is uncertain: while Redis Cluster moves a
// slot, an older store replica can report it for a live session. The session is
// asked about again after a pause, and only the second NOT_FOUND in a row is
// final.
//
// Times are Unix milliseconds.
package tracker
