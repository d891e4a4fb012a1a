package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Contenders and comparison of polls.
const (
	byBare = "bare handler of the gateway's mux"
	ofPoll = "Poll with nothing new"
)

// browser is an HTTP client that keeps as many connections as it has callers.
func (l *lab) browser() *http.Client {
	t := &http.Transport{MaxIdleConnsPerHost: 1024}
	l.onClose(func() error { t.CloseIdleConnections(); return nil })
	return &http.Client{Transport: t}
}

// fetch reads an answer whole; anything but 200 is an error.
func fetch(ctx context.Context, c *http.Client, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", address, resp.Status)
	}
	return nil
}

// pollsOf returns the addresses that ask for what comes after the last event
// of each session.
func pollsOf(ctx context.Context, f *fixture) ([]string, error) {
	out := make([]string, len(f.ids))
	return out, each(len(f.ids), func(i int) error {
		p, err := f.store.client(i).ListEvents(ctx, &sessionv1.ListEventsRequest{Id: f.ids[i], After: proto.String("0"), Limit: 1000})
		out[i] = fmt.Sprintf("http://%s/v1/sessions/%s/events?after=%s", f.store.HTTP, f.ids[i], url.QueryEscape(p.GetNextCursor()))
		return err
	})
}

// polling compares a poll with what the gateway's mux takes to say "ok". The
// limit on polls is off: it is not what is measured.
func (b *bench) polling(ctx context.Context) (comparison, error) {
	s, err := b.lab.serve(ctx, "run", "--poll-interval", "0s")
	if err != nil {
		return comparison{}, err
	}
	f, err := newFixture(ctx, s, nil, pool/10)
	if err != nil {
		return comparison{}, err
	}
	polls, err := pollsOf(ctx, f)
	if err != nil {
		return comparison{}, err
	}
	c := b.lab.browser()
	return comparison{Name: ofPoll, Item: "call", Callers: []int{usual}, Contenders: []contender{
		{Name: byBare, Server: s.process, Do: func(ctx context.Context, _, _ int) error {
			return fetch(ctx, c, "http://"+s.HTTP+"/healthz")
		}},
		{Name: byEmbedded, Server: s.process, Do: func(ctx context.Context, worker, n int) error {
			return fetch(ctx, c, polls[(worker*7919+n)%len(polls)])
		}},
	}}, nil
}
