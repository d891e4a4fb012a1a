package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
)

// bodies reads what comes in as a whole and checks its size, its media type
// and its form before anything is done: the decoder behind it stops at the end
// of the first JSON value and would act on a body that is wrong after that.
func (g *Gateway) bodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost, http.MethodPut, http.MethodPatch:
		default:
			// No other method takes a body; nobody waits for one to end.
			r.Body = http.NoBody
			next.ServeHTTP(w, r)
			return
		}
		body, ok := g.read(w, r)
		if !ok {
			return
		}
		if r.Method == http.MethodPatch {
			body = withEtag(body, r.Header.Get("If-Match"))
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// read returns a request's body; where it is not to be had, ok is false and
// the answer is given.
func (g *Gateway) read(w http.ResponseWriter, r *http.Request) (body []byte, ok bool) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, true
	}
	if r.ContentLength > g.cfg.MaxBody {
		tooLarge(w)
		return nil, false
	}
	if kind := r.Header.Get("Content-Type"); kind != "" && !isJSON(kind) {
		httperr.WriteStatus(w, http.StatusUnsupportedMediaType, codes.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE",
			"Content-Type: got \""+rpc.Shorten(kind)+"\", want application/json")
		return nil, false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, g.cfg.MaxBody))
	var beyond *http.MaxBytesError
	switch {
	case errors.As(err, &beyond):
		tooLarge(w)
		return nil, false
	case err != nil:
		httperr.Write(w, rpc.FieldViolation("body", "", "a body that arrives in full and in time"))
		return nil, false
	case len(body) == 0:
		return nil, true
	}
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		httperr.Write(w, rpc.FieldViolation("body", "", "valid JSON: "+err.Error()))
		return nil, false
	}
	return body, true
}

func isJSON(kind string) bool {
	media, _, err := mime.ParseMediaType(kind)
	return err == nil && (media == "application/json" || strings.HasSuffix(media, "+json"))
}

func tooLarge(w http.ResponseWriter) {
	httperr.WriteStatus(w, http.StatusRequestEntityTooLarge, codes.InvalidArgument, "BODY_TOO_LARGE", "body: larger than the limit of --max-body")
}
