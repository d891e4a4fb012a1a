// Package activity is the activity service: it reads the session store's feed,
// decides what counts as activity, and reports it, so that sessions in use
// live on.
package activity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/consumer"
	"github.com/livinguniverse/stoker/services/activity/internal/server"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

// Service is the activity service without a process around it.
//
//	New -> Register (a gRPC server of the caller's) -> Run -> Close
type Service struct {
	consumer *consumer.Consumer
	server   *server.Server

	stop chan struct{} // closed by Close
	done chan struct{} // closed when Run has returned
	mu   sync.Mutex
	// running and stopped say that Run and Close were called.
	running, stopped bool
}

// New assembles a service that talks to the store by this connection, which
// stays the caller's to close. Of cfg, addresses and authentication are not
// used here.
func New(cfg Config, tel *telemetry.Telemetry, store grpc.ClientConnInterface) (*Service, error) {
	rules, err := cfg.rules()
	if err != nil {
		return nil, err
	}
	if cfg.Consumer == "" {
		cfg.Consumer = consumerName()
	}
	tr := tracker.New(tracker.Config{
		Rules: rules, Flush: cfg.FlushInterval, RetryDelay: time.Second, RecheckDelay: time.Second,
		MaxTracked: cfg.MaxTracked, ForgetAfter: cfg.ForgetAfter,
	})
	client := sessionv1.NewStorageServiceClient(store)
	c, err := consumer.New(consumer.Config{
		Group: cfg.Group, Name: cfg.Consumer, Window: cfg.Window, Batch: 1000, Parallel: 4,
		CallTimeout: cfg.CallTimeout, Grace: cfg.ShutdownGrace,
		BackoffMin: 100 * time.Millisecond, BackoffMax: 2 * time.Second,
		SweepEvery: time.Minute, Now: time.Now,
	}, client, tr, tel)
	if err != nil {
		return nil, fmt.Errorf("activity metrics: %w", err)
	}
	return &Service{
		consumer: c, server: server.New(client, tr, rules, time.Now),
		stop: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// Register adds ActivityService to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	activityv1.RegisterActivityServiceServer(r, s.server)
}

// Run reads the feed until ctx ends or Close is called, then reports what is
// pending within the shutdown grace and returns. The store must outlive it. It
// can be called once.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running || s.stopped {
		s.mu.Unlock()
		return errors.New("activity service: run twice, or after close")
	}
	s.running = true
	s.mu.Unlock()
	defer close(s.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-s.stop:
		case <-ctx.Done():
		}
	}()
	return s.consumer.Run(ctx)
}

// Ready returns nil while the feed is being read.
func (s *Service) Ready(context.Context) error {
	if !s.consumer.Connected() {
		return errors.New("the session store's feed is not being read")
	}
	return nil
}

// Close ends Run and waits for it, at most until ctx ends. Closing twice is
// harmless.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
	running := s.running
	s.mu.Unlock()
	if !running {
		return nil
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("activity service did not stop: %w", ctx.Err())
	}
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// consumerName is different for each process that ever runs.
func consumerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	host = notInNames.ReplaceAllString(host, "-")
	return fmt.Sprintf("%.64s-%d-%.8s", host, os.Getpid(), rand.Text())
}
