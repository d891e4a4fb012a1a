package gateway

import (
	"errors"
	"io"
	"net/http"
)

// limitedBody remembers that a body without a stated length went beyond its
// limit: the decoder only sees an error it does not know.
type limitedBody struct {
	io.ReadCloser
	exceeded bool
}

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		b.exceeded = true
	}
	return n, err
}

// bodyWriter answers 413 in place of what the decoder made of it.
type bodyWriter struct {
	http.ResponseWriter
	body    *limitedBody
	refuse  func(w http.ResponseWriter)
	refused bool
}

func (w *bodyWriter) WriteHeader(status int) {
	if w.body.exceeded {
		if !w.refused {
			w.refused = true
			w.refuse(w.ResponseWriter)
		}
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *bodyWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (w *bodyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
