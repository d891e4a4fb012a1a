package redis

import (
	"context"
	"crypto/sha1" //nolint:gosec // it is how Redis names scripts
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

//go:embed scripts/*.lua
var scriptFiles embed.FS

// script is a Lua script and the name that Redis has for it.
type script struct {
	name, body string
	sha        any // a string, as an argument
}

// libMark is where a script wants lib.lua, other than at its beginning: to define
// it takes about as long as a short script.
const libMark = "--@lib\n"

// scripts holds every script by the name of its file, each with lib.lua in it.
type scripts struct {
	create, update, end, remove, revoke, append, extend, sweep, ack, join, lease, policy, meta, census, hold *script
}

// constants spells what never changes in a store's life as the beginning of its
// scripts: an argument costs both sides something at every call.
func (o Options) constants() string {
	return fmt.Sprintf("local MAX_EVENTS, KEEP, MAX_CAUSES, MAX_DECISIONS, MAX_KINDS = %d, %d, %d, %d, %d\n",
		o.MaxEvents, o.keep(), lifetime.MaxCauses, lifetime.MaxDecisions, lifetime.MaxKinds)
}

// loadScripts reads them; before goes in front of each.
func loadScripts(before string) (*scripts, error) {
	lib, err := scriptFiles.ReadFile("scripts/lib.lua")
	if err != nil {
		return nil, err
	}
	fields := "local FIELDS = {'" + strings.Join(sessionFields, "', '") + "'}\n"
	out := &scripts{}
	for name, dst := range map[string]**script{
		"create": &out.create, "update": &out.update, "end": &out.end, "delete": &out.remove, "revoke": &out.revoke,
		"append": &out.append, "extend": &out.extend, "sweep": &out.sweep, "ack": &out.ack, "join": &out.join,
		"lease": &out.lease, "policy": &out.policy, "meta": &out.meta, "census": &out.census, "hold": &out.hold,
	} {
		body, err := scriptFiles.ReadFile("scripts/" + name + ".lua")
		if err != nil {
			return nil, err
		}
		text := string(body)
		if !strings.Contains(text, libMark) {
			text = libMark + text
		}
		text = before + strings.Replace(text, libMark, fields+string(lib)+"\n", 1)
		sum := sha1.Sum([]byte(text)) //nolint:gosec // it is how Redis names scripts
		*dst = &script{name: name, body: text, sha: hex.EncodeToString(sum[:])}
	}
	return out, nil
}

// reply is what a script returned: a list of integers and strings, the first
// of which is its verdict.
type reply []any

func (r reply) num(i int) int64 {
	switch v := r[i].(type) {
	case int64:
		return v
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		if err == nil {
			return n
		}
	}
	return 0
}

func (r reply) text(i int) string {
	s, _ := r[i].(string)
	return s
}

// command builds the call of a script on a shard, by its name alone.
func (sc *script) command(ctx context.Context, sh *shard, args []any) *goredis.Cmd {
	return call(ctx, "evalsha", sc.sha, sh, args)
}

// teach builds a call that brings the script along.
func (sc *script) teach(ctx context.Context, sh *shard, args []any) *goredis.Cmd {
	return call(ctx, "eval", sc.body, sh, args)
}

func call(ctx context.Context, verb string, what any, sh *shard, args []any) *goredis.Cmd {
	all := make([]any, 0, 5+len(args))
	all = append(all, verb, what, 1, sh.route, sh.prefix)
	return goredis.NewCmd(ctx, append(all, args...)...)
}

// run calls a script on a shard. It is the one way in which anything is
// changed.
func (s *Store) run(ctx context.Context, sc *script, sh *shard, args ...any) (reply, error) {
	ctx, end := s.span(ctx, sc.name)
	cmd := sc.command(ctx, sh, args)
	err := s.conn.write.do(ctx, cmd)
	if noScript(err) {
		// A restarted or flushed server has forgotten it; this teaches it again.
		cmd = sc.teach(ctx, sh, args)
		err = s.conn.write.do(ctx, cmd)
	}
	r, err := verdict(cmd, err)
	end(err)
	return r, err
}

// runAll calls a script once for each argument list, in one round trip, and
// returns a reply or an error for each.
func (s *Store) runAll(ctx context.Context, sc *script, on []*shard, args [][]any) ([]reply, []error) {
	ctx, end := s.span(ctx, sc.name)
	cmds := make([]*goredis.Cmd, len(args))
	for i := range args {
		cmds[i] = sc.command(ctx, on[i], args[i])
	}
	if err := s.conn.write.pipeline(ctx, asCmders(cmds)...); err != nil {
		end(err)
		return make([]reply, len(cmds)), slices.Repeat([]error{err}, len(cmds))
	}
	var again []*goredis.Cmd
	for i, cmd := range cmds {
		if noScript(cmd.Err()) {
			cmds[i] = sc.teach(ctx, on[i], args[i])
			again = append(again, cmds[i])
		}
	}
	if err := s.conn.write.pipeline(ctx, asCmders(again)...); err != nil {
		end(err)
		return make([]reply, len(cmds)), slices.Repeat([]error{err}, len(cmds))
	}
	replies, errs := make([]reply, len(cmds)), make([]error, len(cmds))
	for i, cmd := range cmds {
		replies[i], errs[i] = verdict(cmd, cmd.Err())
	}
	end(errors.Join(errs...))
	return replies, errs
}

// asCmders is cmds as go-redis wants them.
func asCmders[C goredis.Cmder](cmds []C) []goredis.Cmder {
	out := make([]goredis.Cmder, len(cmds))
	for i, c := range cmds {
		out[i] = c
	}
	return out
}

func noScript(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT")
}

func verdict(cmd *goredis.Cmd, err error) (reply, error) {
	if err != nil {
		return nil, failure(err)
	}
	list, ok := cmd.Val().([]any)
	if !ok || len(list) == 0 {
		return nil, fmt.Errorf("script returned %T", cmd.Val())
	}
	return list, nil
}

// span traces one operation on Redis, where it is a part of a trace that is kept.
// Statements and keys stay out of it: they hold session ids.
func (s *Store) span(ctx context.Context, operation string) (context.Context, func(error)) {
	if parent := trace.SpanContextFromContext(ctx); s.untraced || parent.IsValid() && !parent.IsSampled() {
		return ctx, endless
	}
	ctx, span := s.tracer.Start(ctx, "redis "+operation, trace.WithSpanKind(trace.SpanKindClient))
	if span.IsRecording() {
		span.SetAttributes(semconv.DBSystemNameRedis, semconv.DBOperationName(operation), attribute.Bool("stoker.cluster", s.conn.cluster))
		if n := resilience.Attempt(ctx); n > 1 {
			span.SetAttributes(attribute.Int("stoker.attempt", n))
		}
	}
	return ctx, func(err error) {
		if err != nil && span.IsRecording() {
			span.SetStatus(otelcodes.Error, err.Error())
		}
		span.End()
	}
}

// endless ends no span.
func endless(error) {}
