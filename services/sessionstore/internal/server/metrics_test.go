package server_test

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// laggingStore has a group that is ten seconds behind, by a clock that this process is
// ahead of.
type laggingStore struct {
	storage.Store
	ahead time.Duration
}

func (s laggingStore) Status(context.Context) storage.Status {
	return storage.Status{Entries: -1, ClockDifference: &s.ahead}
}

func (s laggingStore) Groups(context.Context) ([]storage.GroupState, error) {
	return []storage.GroupState{{Group: "g", Pending: 1, Watermark: time.Now().Add(-s.ahead - 10*time.Second)}}, nil
}

// TestWatermarkAgeIsByTheClockOfTheBackend: a process whose clock is wrong reports the
// same age as one whose clock is right.
func TestWatermarkAgeIsByTheClockOfTheBackend(t *testing.T) {
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour} {
		reader := metric.NewManualReader()
		if _, err := server.NewMetrics(metric.NewMeterProvider(metric.WithReader(reader)), laggingStore{ahead: ahead}, nil); err != nil {
			t.Fatal(err)
		}
		var out metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		for _, scope := range out.ScopeMetrics {
			for _, m := range scope.Metrics {
				if age, ok := m.Data.(metricdata.Gauge[float64]); ok && m.Name == "stoker_feed_watermark_age" {
					if got := age.DataPoints[0].Value; got < 9 || got > 15 {
						t.Errorf("ahead by %v: %v s", ahead, got)
					}
				}
			}
		}
	}
}
