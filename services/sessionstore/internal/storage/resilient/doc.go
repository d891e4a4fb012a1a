// Package resilient keeps a store answering under load and through short
// faults: calls that may be applied twice are tried again within a budget, and
// calls beyond what is answered in good time are turned away.
//
//	retry -> limit -> the store, whose breakers guard each round trip
//
// Reads and writes have limits of their own, so that they do not starve each
// other.
package resilient
