package gateway_test

import (
	"fmt"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/livinguniverse/stoker/pkg/telemetry"
)

func TestSpansHaveNoIDs(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	b := &backend{}
	g := startTraced(t, b, func(tel *telemetry.Telemetry) {
		tel.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	})
	parent := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	do(t, g, "GET /v1/sessions/hidden1/events?after=hidden2&token=hidden3", "", "Traceparent", parent, "Authorization", "hidden4")
	do(t, g, "GET /hidden5", "")
	do(t, g, "GET /healthz", "")
	names := map[string]bool{}
	for _, s := range spans.Ended() {
		if s.SpanKind() == oteltrace.SpanKindServer {
			names[s.Name()] = true
		}
		if all := fmt.Sprint(s.Name(), s.Attributes(), s.Events()); strings.Contains(all, "hidden") {
			t.Errorf("a span tells what it must not: %s", all)
		}
	}
	if len(names) != 2 || !names["GET /v1/sessions/{id}/events"] || !names["HTTP"] {
		t.Errorf("got spans %v", names)
	}
	calls := b.Calls()
	if len(calls) != 1 || len(calls[0].MD.Get("traceparent")) != 1 || !strings.Contains(calls[0].MD.Get("traceparent")[0], "0af7651916cd43dd8448eb211c80319c") {
		t.Errorf("the caller's trace does not go on in the store: %v", calls)
	}
}
