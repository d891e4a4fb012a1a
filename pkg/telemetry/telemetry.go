// Package telemetry sets up logs, traces and metrics for a process. Nothing is
// global: what Setup returns is handed to those who need it.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
)

// Config says how a process reports. Exporters are configured by the standard
// OTEL_* variables and are off where none is set.
type Config struct {
	ServiceName string
	Version     string
	// LogLevel is debug, info, warn or error.
	LogLevel string
	// LogFormat is text or json.
	LogFormat string
}

// Flags registers --log-level and --log-format.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.LogLevel, "log-level", "info", "least level to log: debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", "text", "log format: text or json")
}

// Validate returns what is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if _, err := c.level(); err != nil {
		errs = append(errs, err)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		errs = append(errs, fmt.Errorf("--log-format: got %q, want text or json", c.LogFormat))
	}
	return errors.Join(errs...)
}

func (c *Config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("--log-level: got %q, want debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}

// Telemetry is how a process reports.
type Telemetry struct {
	Log        *slog.Logger
	Tracer     trace.TracerProvider
	Meter      metric.MeterProvider
	Propagator propagation.TextMapPropagator
	// Metrics serves the metrics in the Prometheus text format.
	Metrics http.Handler

	shutdown []func(context.Context) error
}

// Setup builds the providers and exporters. The caller must call Shutdown.
func Setup(ctx context.Context, cfg Config, logTo io.Writer) (*Telemetry, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	res, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName(cfg.ServiceName), semconv.ServiceVersion(cfg.Version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("telemetry resource: %w", err)
	}
	t := &Telemetry{Propagator: propagator()}
	for _, step := range []func(context.Context, Config, *resource.Resource, io.Writer) error{t.logs, t.traces, t.metrics} {
		if err := step(ctx, cfg, res, logTo); err != nil {
			return nil, errors.Join(err, t.Shutdown(ctx))
		}
	}
	return t, nil
}

// Nop returns a Telemetry that reports nowhere, for tests.
func Nop() *Telemetry {
	return &Telemetry{
		Log:        slog.New(slog.DiscardHandler),
		Tracer:     sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())),
		Meter:      metricnoop.NewMeterProvider(),
		Propagator: propagator(),
		Metrics:    http.NotFoundHandler(),
	}
}

// Shutdown sends what is left and closes the exporters.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for i := len(t.shutdown) - 1; i >= 0; i-- {
		errs = append(errs, t.shutdown[i](ctx))
	}
	t.shutdown = nil
	return errors.Join(errs...)
}

func propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// asked says whether the environment asks for an exporter of a signal: TRACES,
// METRICS or LOGS.
func asked(signal string) bool {
	for _, name := range []string{
		"OTEL_" + signal + "_EXPORTER",
		"OTEL_EXPORTER_OTLP_ENDPOINT",
		"OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT",
	} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

func (t *Telemetry) logs(ctx context.Context, cfg Config, res *resource.Resource, logTo io.Writer) error {
	level, err := cfg.level()
	if err != nil {
		return err
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(logTo, opts)
	if cfg.LogFormat == "json" {
		h = slog.NewJSONHandler(logTo, opts)
	}
	h = withTrace{h}
	if asked("LOGS") {
		exp, err := autoexport.NewLogExporter(ctx)
		if err != nil {
			return fmt.Errorf("log exporter: %w", err)
		}
		if !autoexport.IsNoneLogExporter(exp) {
			p := sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(sdklog.NewBatchProcessor(exp)))
			t.shutdown = append(t.shutdown, p.Shutdown)
			h = slog.NewMultiHandler(h, atLeast{otelslog.NewHandler(cfg.ServiceName, otelslog.WithLoggerProvider(p)), level})
		}
	}
	t.Log = slog.New(h)
	return nil
}

func (t *Telemetry) traces(ctx context.Context, _ Config, res *resource.Resource, _ io.Writer) error {
	opts := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	exporting := false
	if asked("TRACES") {
		exp, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return fmt.Errorf("trace exporter: %w", err)
		}
		if exporting = !autoexport.IsNoneSpanExporter(exp); exporting {
			opts = append(opts, sdktrace.WithBatcher(exp))
		}
	}
	if !exporting {
		// Spans that go nowhere still have ids, for logs and events.
		opts = append(opts, sdktrace.WithSampler(sdktrace.NeverSample()))
	}
	p := sdktrace.NewTracerProvider(opts...)
	t.Tracer = p
	t.shutdown = append(t.shutdown, p.Shutdown)
	return nil
}

func (t *Telemetry) metrics(ctx context.Context, _ Config, res *resource.Resource, _ io.Writer) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exp, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return fmt.Errorf("prometheus exporter: %w", err)
	}
	opts := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(exp)}
	if asked("METRICS") {
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return fmt.Errorf("metric exporter: %w", err)
		}
		if !autoexport.IsNoneMetricReader(reader) {
			opts = append(opts, sdkmetric.WithReader(reader))
		}
	}
	p := sdkmetric.NewMeterProvider(opts...)
	t.Meter = p
	t.Metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry})
	t.shutdown = append(t.shutdown, p.Shutdown)
	return nil
}

// Run sets telemetry up, runs a process with it, and shuts it down after, with
// up to 5 s to send what is left.
func Run(ctx context.Context, cfg Config, logTo io.Writer, process func(tel *Telemetry) error) error {
	tel, err := Setup(ctx, cfg, logTo)
	if err != nil {
		return err
	}
	err = process(tel)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(err, tel.Shutdown(closing))
}
