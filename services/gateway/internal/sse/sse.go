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

// Handler serves streams.
type Handler struct {
	Store   sessionv1.StorageServiceClient
	Marshal protojson.MarshalOptions
	// Heartbeat is the longest silence.
	Heartbeat time.Duration
	// Stopping ends when the server is about to stop: streams end.
	Stopping context.Context //nolint:containedctx // it is the server's, not a call's
}

// message is what comes from the store.
type message struct {
	resp *sessionv1.WatchEventsResponse
	err  error
}

// Serve streams the events of a session. ctx carries the metadata for the
// store. A session that is over and has nothing after the cursor is answered
// by 204, which tells an EventSource to stop.
func (h *Handler) Serve(ctx context.Context, w http.ResponseWriter, r *http.Request, id string) {
	if !accepts(r.Header.Values("Accept")) {
		httperr.WriteStatus(w, http.StatusNotAcceptable, codes.InvalidArgument, "NOT_ACCEPTABLE", "Accept: this route answers text/event-stream")
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.Stopping, cancel)() //nolint:contextcheck // the server's end, not the call's
	req := &sessionv1.WatchEventsRequest{Id: id}
	if after := after(r); after != "" {
		req.After = proto.String(after)
	}
	stream, err := h.Store.WatchEvents(ctx, req)
	if err != nil {
		httperr.Write(w, err)
		return
	}
	messages := make(chan message)
	done := make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	go func() {
		defer close(done)
		for {
			resp, err := stream.Recv()
			select {
			case messages <- message{resp, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	h.relay(ctx, &writer{w: w, rc: http.NewResponseController(w), marshal: h.Marshal}, messages)
}

// settle is how long the first answer may take before the stream is opened
// without one: until then an error still has its own status.
const settle = 300 * time.Millisecond

func (h *Handler) relay(ctx context.Context, out *writer, messages <-chan message) {
	beat := time.NewTimer(settle)
	defer beat.Stop()
	for {
		var err error
		select {
		case m := <-messages:
			switch {
			case errors.Is(m.err, io.EOF) && !out.open:
				out.w.WriteHeader(http.StatusNoContent)
				return
			case m.err != nil && !out.open:
				h.refuse(out.w, m.err)
				return
			case m.err != nil:
				if !errors.Is(m.err, io.EOF) && ctx.Err() == nil {
					_ = out.fail(m.err)
				}
				return
			case m.resp.GetEvent() == nil:
				err = out.heartbeat()
			default:
				err = out.event(m.resp)
			}
		case <-beat.C:
			err = out.heartbeat()
		case <-ctx.Done():
			if !out.open {
				h.refuse(out.w, ctx.Err())
			}
			return
		}
		if err != nil {
			return
		}
		beat.Reset(h.Heartbeat)
	}
}

// refuse answers an error before the first part. A stream that was cut because
// this server stops is one to be asked for again, elsewhere or later.
func (h *Handler) refuse(w http.ResponseWriter, err error) {
	if h.Stopping.Err() != nil {
		err = status.Error(codes.Unavailable, "stopping")
	}
	httperr.Write(w, err)
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

// writer writes the parts of a stream.
type writer struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	marshal protojson.MarshalOptions
	open    bool
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
	if _, err := io.WriteString(o.w, text); err != nil {
		return err
	}
	return o.rc.Flush()
}

func (o *writer) heartbeat() error {
	if err := o.begin(); err != nil {
		return err
	}
	return o.write(": heartbeat\n\n")
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
