package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// figure is a number that may be unknown (NaN): null in JSON.
type figure float64

// MarshalJSON writes null for what is unknown.
func (f figure) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

var unknown = figure(math.NaN())

// contender is one way of doing the same thing.
type contender struct {
	Name string
	// Server is whose processor time and allocations count; nil where the load
	// generator talks to Redis itself.
	Server *process
	// Redis is the one that is used; nil for none.
	Redis *redis
	// Items of a call; 1 where 0.
	Items int
	Do    op
}

// sample is what one contender did in one round. Everything but the latencies
// is per item: a call, or one of the many that a call carries.
type sample struct {
	Comparison string `json:"comparison"`
	Contender  string `json:"contender"`
	Callers    int    `json:"callers"`
	Round      int    `json:"round"`

	Calls      int    `json:"calls"`
	Errors     int    `json:"errors"`
	FirstError string `json:"firstError,omitempty"`

	PerSecond     figure `json:"itemsPerSecond"`
	P50           figure `json:"p50Micros"`
	P99           figure `json:"p99Micros"`
	CPU           figure `json:"serverCPUMicrosPerItem"`
	Allocs        figure `json:"serverAllocationsPerItem"`
	RedisCommands figure `json:"redisCommandsPerItem"`
	RedisCPU      figure `json:"redisCPUMicrosPerItem"`
}

// cost is the processor time of an item in all servers together.
func (s sample) cost() float64 {
	if math.IsNaN(float64(s.RedisCPU)) {
		return float64(s.CPU)
	}
	return float64(s.CPU + s.RedisCPU)
}

// warmUp is the share of a phase that is not measured.
const warmUp = 0.2

// measure runs one phase: it warms up, looks at what the servers have used,
// drives, and looks again. Nothing is under way at either look, so that every
// call is in the figures and nothing else is.
func measure(ctx context.Context, c contender, callers int, d time.Duration) (sample, error) {
	warm := time.Duration(warmUp * float64(d))
	drive(ctx, callers, warm, c.Do)
	before, err := look(ctx, c)
	if err != nil {
		return sample{}, err
	}
	l := drive(ctx, callers, d-warm, c.Do)
	if err := ctx.Err(); err != nil {
		return sample{}, err
	}
	after, err := look(ctx, c)
	if err != nil {
		return sample{}, err
	}
	s := sample{Contender: c.Name, Callers: callers, Calls: l.Calls, Errors: l.Errors, PerSecond: unknown, P50: unknown, P99: unknown, CPU: unknown, Allocs: unknown, RedisCommands: unknown, RedisCPU: unknown}
	if l.First != nil {
		s.FirstError = l.First.Error()
	}
	if len(l.Sorted) == 0 {
		return s, nil
	}
	items := float64(len(l.Sorted) * max(1, c.Items))
	s.PerSecond = figure(items / l.Elapsed.Seconds())
	s.P50, s.P99 = micros(percentile(l.Sorted, 0.5)), micros(percentile(l.Sorted, 0.99))
	if c.Server != nil {
		s.CPU = micros(after.server.CPU-before.server.CPU) / figure(items)
		s.Allocs = figure(float64(after.server.Mallocs-before.server.Mallocs) / items)
	}
	if c.Redis != nil {
		s.RedisCommands = figure((after.redis.commands - before.redis.commands) / items)
		s.RedisCPU = figure((after.redis.cpu - before.redis.cpu) * 1e6 / items)
	}
	return s, nil
}

func micros(d time.Duration) figure { return figure(float64(d) / float64(time.Microsecond)) }

// sight is what the servers of a contender have used up to now.
type sight struct {
	server usage
	redis  redisUsage
}

func look(ctx context.Context, c contender) (sight, error) {
	var s sight
	var err error
	if c.Server != nil {
		if s.server, err = c.Server.ask(askUsage); err != nil {
			return s, err
		}
	}
	if c.Redis != nil {
		s.redis, err = c.Redis.used(ctx)
	}
	return s, err
}

// redisUsage is what a Redis says of itself.
type redisUsage struct {
	// commands that it ran, those inside of scripts included.
	commands float64
	// cpu in seconds.
	cpu float64
}

func (r *redis) used(ctx context.Context) (redisUsage, error) {
	info, err := r.admin.Info(ctx, "stats", "cpu").Result()
	if err != nil {
		return redisUsage{}, err
	}
	v, err := fields(info, "total_commands_processed", "used_cpu_sys", "used_cpu_user")
	if err != nil {
		return redisUsage{}, err
	}
	return redisUsage{commands: v[0], cpu: v[1] + v[2]}, nil
}

// fields reads numbers out of an answer to INFO.
func fields(info string, names ...string) ([]float64, error) {
	all := map[string]string{}
	for lines := bufio.NewScanner(strings.NewReader(info)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
			all[name] = value
		}
	}
	out := make([]float64, len(names))
	for i, name := range names {
		n, err := strconv.ParseFloat(all[name], 64)
		if err != nil {
			return nil, fmt.Errorf("INFO: %s: %w", name, err)
		}
		out[i] = n
	}
	return out, nil
}
