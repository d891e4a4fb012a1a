package fallback

import (
	"hash/maphash"
	"sync/atomic"
)

// order tells what came before what in this process, so that an answer that
// was long on its way does not pass for news.
//
// A call takes a ticket before it asks the store. What ends, deletes or doubts
// a session bars its key: answers to tickets from before then say nothing any
// more. Keys share stripes, so an answer may be taken for one of those: what is
// known of its session is doubted then, which costs an answer in an outage.
type order struct {
	seed maphash.Seed
	last atomic.Uint64
	bars [3][]atomic.Uint64
}

// What a key names.
const (
	ofSession = iota
	ofUser
	ofProject
)

func newOrder(stripes int) *order {
	o := &order{seed: maphash.MakeSeed()}
	for kind := range o.bars {
		o.bars[kind] = make([]atomic.Uint64, stripes)
	}
	return o
}

// now is the ticket of a call that begins.
func (o *order) now() uint64 { return o.last.Load() }

// next is a place after every ticket that was given out.
func (o *order) next() uint64 { return o.last.Add(1) }

func (o *order) stripe(kind int, key string) *atomic.Uint64 {
	stripes := o.bars[kind]
	return &stripes[maphash.String(o.seed, key)%uint64(len(stripes))]
}

// bar makes every ticket given out so far too old for the key.
func (o *order) bar(kind int, key string) {
	at, stripe := o.next(), o.stripe(kind, key)
	for before := stripe.Load(); before < at && !stripe.CompareAndSwap(before, at); {
		before = stripe.Load()
	}
}

// barAll makes every ticket given out so far too old for every key.
func (o *order) barAll() {
	at := o.next()
	for kind := range o.bars {
		for i := range o.bars[kind] {
			stripe := &o.bars[kind][i]
			for before := stripe.Load(); before < at && !stripe.CompareAndSwap(before, at); {
				before = stripe.Load()
			}
		}
	}
}

// barred says whether the ticket is too old for the key.
func (o *order) barred(kind int, key string, ticket uint64) bool {
	return o.stripe(kind, key).Load() > ticket
}
