package gateway

import (
	"encoding/json"
	"net/http"
	"strings"
)

// withEtag puts the etag of an If-Match header into a JSON object that has
// none: an update that was meant to be conditional must not become
// unconditional. What is no object is left to the decoder.
func withEtag(body []byte, ifMatch string) []byte {
	if ifMatch == "" || ifMatch == "*" {
		return body
	}
	if len(body) == 0 {
		body = []byte("{}")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return body
	}
	if given, ok := fields["etag"]; ok && string(given) != `""` && string(given) != "null" {
		return body
	}
	delete(fields, "etag")
	value, err := json.Marshal(ifMatch)
	if err != nil {
		return body
	}
	fields["etag"] = value
	out, err := json.Marshal(fields)
	if err != nil {
		return body
	}
	return out
}

// etags turns an answer that the caller has already into 304.
func (g *Gateway) etags(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if have := r.Header.Values("If-None-Match"); len(have) > 0 && r.Method == http.MethodGet {
			w = &conditional{ResponseWriter: w, have: strings.Join(have, ",")}
		}
		next.ServeHTTP(w, r)
	})
}

// conditional drops the body of an answer whose ETag the caller has.
type conditional struct {
	http.ResponseWriter
	have  string
	begun bool
	drop  bool
}

func (c *conditional) WriteHeader(status int) {
	c.begun = true
	if etag := c.Header().Get("ETag"); status == http.StatusOK && etag != "" && matches(c.have, etag) {
		c.drop = true
		c.Header().Del("Content-Type")
		c.Header().Del("Content-Length")
		status = http.StatusNotModified
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *conditional) Write(p []byte) (int, error) {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	if c.drop {
		return len(p), nil
	}
	return c.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (c *conditional) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// matches compares weakly, as RFC 9110, section 13.1.2, says.
func matches(have, etag string) bool {
	for _, h := range strings.Split(have, ",") {
		if h = strings.TrimSpace(h); h == "*" || strings.TrimPrefix(h, "W/") == etag {
			return true
		}
	}
	return false
}
