// Package policy decides what counts as activity and when it must be reported
// to the store: pure functions of states, events and times, with no I/O.
//
// Times are Unix milliseconds, durations are milliseconds.
package policy
