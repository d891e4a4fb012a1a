package redis

import (
	"context"
	"crypto/sha1" //nolint:gosec // it is how Redis names scripts
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

//go:embed scripts/*.lua
var scriptFiles embed.FS

// script is a Lua script and the name that Redis has for it, with the parts of
// lib.lua that it uses.
type script struct {
	name, body string
	sha        any // a string, as an argument
	// keys are the kinds of keys that it may touch, in order. Those from required
	// on are declared only by callers that need them.
	keys     []keyKind
	required int
	// whenFull makes Redis run it also when its memory is full.
	whenFull bool
}

// libMark is where a script wants the parts of lib.lua, other than at its beginning:
// to define them takes about as long as a short script.
const libMark = "--@lib\n"

// scripts holds every script by the name of its file.
type scripts struct {
	create, update, end, remove, append, extend *script
	sweep, warn, expire, purge, reindex, forget *script
	ack, join, lease, beat, hold                *script
	policy, meta, mark, gap, raiseFormat        *script
}

// byName says which file each script is from.
func (s *scripts) byName() map[string]**script {
	return map[string]**script{
		"create": &s.create, "update": &s.update, "end": &s.end, "delete": &s.remove, "append": &s.append, "extend": &s.extend,
		"sweep": &s.sweep, "warn": &s.warn, "expire": &s.expire, "purge": &s.purge, "reindex": &s.reindex, "forget": &s.forget,
		"ack": &s.ack, "join": &s.join, "lease": &s.lease, "beat": &s.beat, "hold": &s.hold, "policy": &s.policy, "meta": &s.meta,
		"format": &s.raiseFormat, "mark": &s.mark, "gap": &s.gap,
	}
}

// constants spells what never changes in a store's life as the beginning of its
// scripts: an argument costs both sides something at every call.
func (o Options) constants(cluster bool) string {
	return fmt.Sprintf("local CLUSTER, MAX_EVENTS, KEEP, LINGER, RETENTION = %t, %d, %d, %d, %d\n", cluster, o.MaxEvents, o.keep(), o.linger(), o.Retention.Milliseconds()) +
		fmt.Sprintf("local MAX_CAUSES, MAX_DECISIONS, MAX_KINDS, MAX_MARKS = %d, %d, %d, %d\n", lifetime.MaxCauses, lifetime.MaxDecisions, lifetime.MaxKinds, marksMost)
}

// loadScripts names them; before goes in front of each.
func loadScripts(before string) (*scripts, error) {
	files, err := readScripts()
	if err != nil {
		return nil, err
	}
	out := &scripts{}
	for name, dst := range out.byName() {
		sc := files[name]
		sc.body = before + sc.body
		if sc.whenFull = runsWhenFull[name]; sc.whenFull {
			sc.body = allowFull + sc.body
		}
		sc.sha = nameScript(sc.body)
		*dst = &sc
	}
	return out, nil
}

// readScripts puts each script together with the parts of lib.lua that it uses, once
// for all stores: they differ only in their constants.
var readScripts = sync.OnceValues(func() (map[string]script, error) {
	lib, err := scriptFiles.ReadFile("scripts/lib.lua")
	if err != nil {
		return nil, err
	}
	fields := part{[]string{"FIELDS"}, "local FIELDS = {'" + strings.Join(sessionFields, "', '") + "'}\n"}
	parts := append([]part{fields}, splitLib(string(lib))...)
	out := map[string]script{}
	for name := range new(scripts).byName() {
		file, err := scriptFiles.ReadFile("scripts/" + name + ".lua")
		if err != nil {
			return nil, err
		}
		body, sc := string(file), script{name: name}
		if err := sc.parseKeys(body); err != nil {
			return nil, fmt.Errorf("script %s: %w", name, err)
		}
		if !strings.Contains(body, libMark) {
			body = libMark + body
		}
		sc.body = sc.keyVariables() + strings.Replace(body, libMark, usedParts(parts, body), 1)
		out[name] = sc
	}
	return out, nil
})

// part is a piece of lib.lua, and what it defines.
type part struct {
	names []string
	text  string
}

// splitLib splits lib.lua at its marks.
func splitLib(lib string) []part {
	var out []part
	for i, text := range strings.Split(lib, "--@part ") {
		if i == 0 {
			continue // the comment before the first
		}
		names, text, _ := strings.Cut(text, "\n")
		out = append(out, part{strings.Fields(names), text})
	}
	return out
}

var (
	luaComment = regexp.MustCompile(`--[^\n]*`)
	luaName    = regexp.MustCompile(`[A-Za-z_]\w*`)
)

// usedParts joins the parts that a script uses, and those that they use.
func usedParts(parts []part, body string) string {
	used := map[string]bool{}
	use := func(text string) {
		for _, name := range luaName.FindAllString(luaComment.ReplaceAllString(text, ""), -1) {
			used[name] = true
		}
	}
	use(body)
	joined := ""
	for _, p := range slices.Backward(parts) {
		if slices.ContainsFunc(p.names, func(name string) bool { return used[name] }) {
			use(p.text)
			joined = p.text + joined
		}
	}
	return joined
}

// nameScript returns what Redis calls a script.
func nameScript(body string) string {
	sum := sha1.Sum([]byte(body)) //nolint:gosec // it is how Redis names scripts
	return hex.EncodeToString(sum[:])
}

// parseKeys reads the first line of a script, "-- KEYS: session feed [request]":
// the kinds of keys that it declares, optional ones in brackets at the end.
func (sc *script) parseKeys(body string) error {
	line, _, _ := strings.Cut(body, "\n")
	list, ok := strings.CutPrefix(line, "-- KEYS: ")
	if !ok {
		return fmt.Errorf("first line %q names no keys", line)
	}
	required, optional, _ := strings.Cut(strings.TrimSuffix(list, "]"), "[")
	sc.required = len(strings.Fields(required))
	for _, name := range strings.Fields(required + " " + optional) {
		k := slices.IndexFunc(kinds[:], func(kind struct{ name, suffix string }) bool { return kind.name == name })
		if k < 0 {
			return fmt.Errorf("no kind of key is named %q", name)
		}
		sc.keys = append(sc.keys, keyKind(k))
	}
	return nil
}

// keyVariables spells the Lua variables that hold the declared keys. All kinds
// have one: a key that is not declared is nil, and a command on it fails.
func (sc *script) keyVariables() string {
	var names, declared, values []string
	for k := range kinds {
		name := strings.ToUpper(strings.ReplaceAll(kinds[k].name, "-", "_"))
		if at := slices.Index(sc.keys, keyKind(k)); at >= 0 {
			declared, values = append(declared, name), append(values, fmt.Sprintf("KEYS[%d]", at+1))
		} else {
			names = append(names, name)
		}
	}
	return "local " + strings.Join(declared, ", ") + " = " + strings.Join(values, ", ") + "\nlocal " + strings.Join(names, ", ") + "\n"
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

// invocation is one call of a script: the keys that it declares and its
// arguments, behind the room for what names the script.
type invocation struct {
	sc   *script
	args []any
}

// argsAt is where the keys of an invocation begin: behind the command, the
// script and the number of keys.
const argsAt = 3

// on builds a call that declares the keys a script requires. name is that of the
// session, request or group that the call is about, where it is about one.
func (sc *script) on(sh *shard, name string, args ...any) invocation {
	return sc.declare(sh, name, sc.required, len(args)).with(args...)
}

// declare begins a call that declares the first n keys of a script, with room for
// optional keys and that many arguments. Optional keys come before arguments.
func (sc *script) declare(sh *shard, name string, n, room int) invocation {
	all := make([]any, argsAt, argsAt+len(sc.keys)+room)
	all[2] = n
	for _, k := range sc.keys[:n] {
		all = append(all, sh.key(k, name))
	}
	return invocation{sc, all}
}

// and declares the next optional key.
func (in invocation) and(key any) invocation {
	n, _ := in.args[2].(int)
	in.args[2] = n + 1
	return in.with(key)
}

func (in invocation) with(args ...any) invocation {
	in.args = append(in.args, args...)
	return in
}

// command calls the script by its name alone.
func (in invocation) command(ctx context.Context) *goredis.Cmd {
	in.args[0], in.args[1] = "evalsha", in.sc.sha
	return goredis.NewCmd(ctx, in.args...)
}

// teach builds a call that brings the script along.
func (in invocation) teach(ctx context.Context) *goredis.Cmd {
	args := slices.Clone(in.args) // a command that is still on its way has the others
	args[0], args[1] = "eval", in.sc.body
	return goredis.NewCmd(ctx, args...)
}

// run calls a script. It is the one way in which anything is changed.
func (s *Store) run(ctx context.Context, in invocation) (reply, error) {
	ctx, end := s.span(ctx, in.sc.name)
	cmd, l := in.command(ctx), s.laneOf(in.sc)
	err := l.do(ctx, cmd)
	if noScript(err) {
		// A restarted or flushed server has forgotten it; this teaches it again.
		cmd = in.teach(ctx)
		err = l.do(ctx, cmd)
	}
	r, err := verdict(cmd, err)
	end(err)
	return r, err
}

// runAll makes many calls, in one round trip to each node, and returns a reply or
// an error for each. The scripts of all must run on the same lane.
func (s *Store) runAll(ctx context.Context, operation string, calls []invocation) ([]reply, []error) {
	if len(calls) == 0 {
		return nil, nil
	}
	ctx, end := s.span(ctx, operation)
	l := s.laneOf(calls[0].sc)
	cmds := make([]*goredis.Cmd, len(calls))
	for i, in := range calls {
		cmds[i] = in.command(ctx)
	}
	if err := l.pipeline(ctx, asCmders(cmds)...); err != nil {
		end(err)
		return make([]reply, len(cmds)), slices.Repeat([]error{err}, len(cmds))
	}
	var again []*goredis.Cmd
	for i, cmd := range cmds {
		if noScript(cmd.Err()) {
			cmds[i] = calls[i].teach(ctx)
			again = append(again, cmds[i])
		}
	}
	if err := l.pipeline(ctx, asCmders(again)...); err != nil {
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

// runEach is runAll for calls that are about different sessions, so that their order
// does not matter: while the server works one batch off, the next is on its way.
func (s *Store) runEach(ctx context.Context, operation string, calls []invocation) ([]reply, []error) {
	if len(calls) <= batchMost {
		return s.runAll(ctx, operation, calls)
	}
	replies, errs := make([]reply, len(calls)), make([]error, len(calls))
	var g errgroup.Group
	g.SetLimit(eachAtOnce)
	for from := 0; from < len(calls); from += batchMost {
		to := min(from+batchMost, len(calls))
		g.Go(func() error {
			some, failed := s.runAll(ctx, operation, calls[from:to])
			copy(replies[from:], some)
			copy(errs[from:], failed)
			return nil
		})
	}
	_ = g.Wait() // each call has its own error
	return replies, errs
}

// eachAtOnce bounds the batches of one caller that are under way.
const eachAtOnce = 2

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
