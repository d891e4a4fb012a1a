package bench

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// sink takes the traces that the services export, as a collector would.
type sink struct {
	srv      *http.Server
	addr     string
	received atomic.Int64
	done     chan struct{}
}

func newSink(ctx context.Context) (*sink, error) {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{addr: lis.Addr().String(), done: make(chan struct{})}
	s.srv = &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		s.received.Add(n)
		// An empty answer is a full success.
		w.Header().Set("Content-Type", "application/x-protobuf")
	})}
	go func() {
		defer close(s.done)
		_ = s.srv.Serve(lis)
	}()
	return s, nil
}

// env makes a service sample one trace in a hundred and export it here.
func (s *sink) env() []string {
	return []string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none",
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + s.addr + "/v1/traces",
		"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.01",
	}
}

func (s *sink) close() error {
	err := s.srv.Close()
	<-s.done
	return err
}
