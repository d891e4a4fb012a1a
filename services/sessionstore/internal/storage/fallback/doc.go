// Package fallback is a decorator of a store that remembers the last known
// state of sessions and policies, within bounds, and answers reads of single
// ones from there while the store under it cannot answer.
//
// What it answers is old, and is told apart by Options.Stale. It is never older
// than what this replica has answered before, and what this replica has ended,
// deleted or revoked is never answered as live. Where it does not know, the
// store's own error stays: not knowing is not ErrNotFound. Lists, counts and
// logs are not answered, since a part of one would look like the whole.
package fallback
