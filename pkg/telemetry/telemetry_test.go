package telemetry

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSetup(t *testing.T) {
	var out bytes.Buffer
	tel, err := Setup(t.Context(), Config{ServiceName: "x", Version: "1", LogLevel: "info", LogFormat: "json"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := tel.Tracer.Tracer("test").Start(t.Context(), "work")
	tel.Log.InfoContext(ctx, "hello")
	tel.Log.DebugContext(ctx, "not logged")
	span.End()
	var record map[string]any
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatalf("%q: %v", out.String(), err)
	}
	if record["trace_id"] != span.SpanContext().TraceID().String() || !span.SpanContext().IsValid() {
		t.Errorf("logged %v under trace %s", record, span.SpanContext().TraceID())
	}
	counter, err := tel.Meter.Meter("test").Int64Counter("stoker_things")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(ctx, 3)
	rec := httptest.NewRecorder()
	tel.Metrics.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"stoker_things_total 3", "go_goroutines", "process_cpu_seconds_total", `service_name="x"`} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestExportersFollowTheEnvironment(t *testing.T) {
	for _, signal := range []string{"TRACES", "METRICS", "LOGS"} {
		if asked(signal) {
			t.Errorf("%s asked for by nobody", signal)
		}
	}
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
	if !asked("TRACES") || asked("LOGS") {
		t.Error("one signal's endpoint does not ask for that signal alone")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	if !asked("LOGS") {
		t.Error("the common endpoint does not ask for every signal")
	}
}

func TestValidate(t *testing.T) {
	c := Config{LogLevel: "loud", LogFormat: "xml"}
	err := c.Validate()
	for _, want := range []string{`--log-level: got "loud"`, `--log-format: got "xml"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %s in it", err, want)
		}
	}
}
