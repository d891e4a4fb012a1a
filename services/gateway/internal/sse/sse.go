// Package sse serves a session's events as server-sent events, as the HTML
// standard describes them (https://html.spec.whatwg.org/multipage/server-sent-events.html).
package sse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
)

const (
	// retryHint is what browsers wait before they reconnect, in milliseconds.
	retryHint = 2000
	// writeTimeout is how long a client may take to accept a part; one that is
	// gone without a word is dropped after it.
	writeTimeout = 10 * time.Second
)

// Watch calls WatchEvents, and hands each answer to each until the stream ends
// or each returns an error; it returns nil at the stream's own end.
type Watch func(ctx context.Context, req *sessionv1.WatchEventsRequest, each func(*sessionv1.WatchEventsResponse) error) error

// Receive watches over a connection.
func Receive(store sessionv1.StorageServiceClient) Watch {
	return func(ctx context.Context, req *sessionv1.WatchEventsRequest, each func(*sessionv1.WatchEventsResponse) error) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // of the stream, when each has had enough
		stream, err := store.WatchEvents(ctx, req)
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if err := each(m); err != nil {
				return err
			}
		}
	}
}

// Handler serves streams.
type Handler struct {
	Watch   Watch
	Marshal protojson.MarshalOptions
	// Heartbeat is the longest silence.
	Heartbeat time.Duration
}

// settle is how long the first answer may take before the stream is opened
// without one: until then an error still has its own status.
const settle = 300 * time.Millisecond

// Serve streams the events of a session until ctx ends, which carries the metadata
// for the store. A session that is over and has nothing after the cursor is answered
// by 204, which tells an EventSource to stop.
func (h *Handler) Serve(ctx context.Context, w http.ResponseWriter, r *http.Request, id string) {
	if !accepts(r.Header.Values("Accept")) {
		httperr.WriteStatus(w, http.StatusNotAcceptable, codes.InvalidArgument, "NOT_ACCEPTABLE", "Accept: this route answers text/event-stream")
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &sessionv1.WatchEventsRequest{Id: id}
	if after := after(r); after != "" {
		req.After = proto.String(after)
	}
	out := newWriter(w, h, cancel)
	defer out.close() // also when something panics
	err := h.Watch(ctx, req, out.next)
	out.close()
	switch {
	case out.open:
		if err != nil && ctx.Err() == nil && !out.lost {
			_ = out.fail(err)
		}
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case ctx.Err() != nil:
		httperr.Write(w, httperr.Cut(ctx, ctx.Err()))
	default:
		httperr.Write(w, err)
	}
}

// accepts says whether a client takes what this route serves.
func accepts(accept []string) bool {
	all := strings.Join(accept, ",")
	if strings.TrimSpace(all) == "" {
		return true
	}
	for _, part := range strings.Split(all, ",") {
		kind, _, _ := strings.Cut(part, ";")
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/event-stream", "text/*", "*/*":
			return true
		}
	}
	return false
}

// after is where a client wants to go on.
func after(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("after")
}

// writer writes the parts of a stream, and heartbeats by itself.
type writer struct {
	w         http.ResponseWriter
	rc        *http.ResponseController
	marshal   protojson.MarshalOptions
	heartbeat time.Duration
	// cancel ends the stream when a heartbeat finds nobody there.
	cancel context.CancelFunc

	mu           sync.Mutex // one part at a time
	beat         *time.Timer
	open, closed bool
	lost         bool // a part could not be written
}

func newWriter(w http.ResponseWriter, h *Handler, cancel context.CancelFunc) *writer {
	o := &writer{w: w, rc: http.NewResponseController(w), marshal: h.Marshal, heartbeat: h.Heartbeat, cancel: cancel}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.beat = time.AfterFunc(settle, o.silence)
	return o
}

// next writes what came from the store.
func (o *writer) next(m *sessionv1.WatchEventsResponse) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.beat.Reset(o.heartbeat)
	if m.GetEvent() == nil && m.GetTruncated() {
		return o.truncated(m.GetCursor())
	}
	if m.GetEvent() == nil {
		return o.comment()
	}
	return o.event(m)
}

// silence breaks one that has lasted long enough.
func (o *writer) silence() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	if o.comment() != nil {
		o.cancel()
		return
	}
	o.beat.Reset(o.heartbeat)
}

// close waits for a heartbeat under way: after it there is none.
func (o *writer) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.beat.Stop()
}

func (o *writer) begin() error {
	if o.open {
		return nil
	}
	o.open = true
	h := o.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	// Proxies that buffer would hold events back.
	h.Set("X-Accel-Buffering", "no")
	o.w.WriteHeader(http.StatusOK)
	return o.write(fmt.Sprintf("retry: %d\n\n", retryHint))
}

func (o *writer) write(text string) error {
	if err := o.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	_, err := io.WriteString(o.w, text)
	if err == nil {
		err = o.rc.Flush()
	}
	o.lost = o.lost || err != nil
	return err
}

// comment is a heartbeat.
func (o *writer) comment() error {
	if err := o.begin(); err != nil {
		return err
	}
	return o.write(": heartbeat\n\n")
}

// truncated reports that events are gone, where none has come after them yet. The
// client resumes at the cursor.
func (o *writer) truncated(cursor string) error {
	if err := o.begin(); err != nil {
		return err
	}
	return o.write("id: " + cursor + "\nevent: truncated\ndata: {}\n\n")
}

func (o *writer) event(m *sessionv1.WatchEventsResponse) error {
	if err := o.begin(); err != nil {
		return err
	}
	if m.GetTruncated() {
		if err := o.write("event: truncated\ndata: {}\n\n"); err != nil {
			return err
		}
	}
	data, err := o.marshal.Marshal(m.GetEvent())
	if err != nil {
		return err
	}
	return o.write(fmt.Sprintf("id: %s\nevent: %s\ndata: %s\n\n", m.GetCursor(), m.GetEvent().GetType(), data))
}

// fail tells of an error in the middle of a stream; the client reconnects and
// goes on at its cursor.
func (o *writer) fail(err error) error {
	data, merr := protojson.Marshal(httperr.Clean(status.Convert(err)).Proto())
	if merr != nil {
		return merr
	}
	return o.write(fmt.Sprintf("event: error\ndata: %s\n\n", data))
}
