// Package consumer reads the store's feed, reports activity in batches and
// acknowledges what the store has answered for.
package consumer
