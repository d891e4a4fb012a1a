package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// A session's hash holds what never changes (pb: whose it is; pol: the frozen
// policy, also spelled out as numbers for the scripts), what clients change (lab,
// data), and what the scripts change, each in a field of its own, so that extending
// a session moves none of its data. The time of its creation is crt; pb has the time
// that the creation was sent with, as earlier versions read it.
var sessionFields = []string{"pb", "pol", "lab", "data", "st", "exp", "ext", "act", "rev", "upd", "end", "why", "crt"}

// Places among them.
const (
	fieldState  = 4
	fieldExpire = 5
)

// hash spells a new session as fields and values. Those that create.lua uses come
// first, in the order that it expects.
func hash(in *sessionv1.Session, request string) ([]any, error) {
	fixed := &sessionv1.Session{Id: in.GetId(), User: in.GetUser(), Project: in.GetProject(), CreateTime: in.GetCreateTime()}
	pb, err1 := fixed.MarshalVT()
	pol, err2 := in.GetTtlPolicy().MarshalVT()
	lab, err3 := encodeLabels(in.GetLabels())
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	t := lifetime.NewTerms(lifetime.Millis(in.GetCreateTime()), in.GetTtlPolicy())
	out := make([]any, 0, 2*25)
	out = append(out,
		"crt", t.Create, "exp", lifetime.Millis(in.GetExpireTime()), "act", lifetime.Millis(in.GetLastActivityTime()),
		"upd", lifetime.Millis(in.GetUpdateTime()), "cap", t.Cap, "below", t.ExtendBelow,
		"pm", in.GetProject()+"\x00"+in.GetUser()+"\x00"+in.GetId())
	if in.GetUser() != "" {
		out = append(out, "um", in.GetUser()+"\x00"+in.GetProject()+"\x00"+in.GetId())
	}
	out = append(out,
		"pb", pb, "pol", pol, "lab", lab, "st", 0, "req", request,
		"ext", in.GetExtensionCount(), "cause", 0, "rev", max(1, in.GetRevision()),
		"step", t.Extension, "max", t.Max, "minint", t.MinInterval, "window", t.ActiveWindow,
		"strategy", int(t.Strategy))
	if in.GetData() != nil {
		data, err := proto.Marshal(in.GetData())
		if err != nil {
			return nil, err
		}
		out = append(out, "data", data)
	}
	return out, nil
}

func encodeLabels(labels map[string]string) ([]byte, error) {
	return (&sessionv1.Session{Labels: labels}).MarshalVT()
}

// sessionArgs are sessionFields as arguments of a command, made once: a string
// takes memory each time it becomes one.
var sessionArgs = func() []any {
	out := make([]any, len(sessionFields))
	for i, f := range sessionFields {
		out[i] = f
	}
	return out
}()

// read builds the command that fetches a session, and more fields of it. A raw
// reply would take less memory, but go-redis takes every raw reply for a success,
// also LOADING and MOVED.
func read(ctx context.Context, sh *shard, id string, more ...string) *goredis.StringSliceCmd {
	args := make([]any, 0, 2+len(sessionArgs)+len(more))
	args = append(append(args, "hmget", sh.session(id)), sessionArgs...)
	for _, f := range more {
		args = append(args, f)
	}
	return goredis.NewStringSliceCmd(ctx, args...)
}

// session builds the message from the fields as a script returned them, as of now. A
// session that was live to the script is returned as live, though it may have ended
// since: the script's caller has looked for endings before.
func (s *Store) session(vals []any, now int64) (*sessionv1.Session, error) {
	var r row
	if len(vals) != len(r) {
		return nil, storage.ErrNotFound
	}
	for i, v := range vals {
		r[i], _ = v.(string)
	}
	return s.message(&r, now, true)
}

// parsed builds it from the answer to read.
func (s *Store) parsed(vals []string, now int64) (*sessionv1.Session, error) {
	if len(vals) < len(row{}) {
		return nil, fmt.Errorf("%w: %d fields of a session", errReply, len(vals))
	}
	return s.message((*row)(vals), now, false)
}

func (s *Store) message(r *row, now int64, live bool) (*sessionv1.Session, error) {
	if r[0] == "" {
		return nil, storage.ErrNotFound
	}
	m := &struct {
		session                                        sessionv1.Session
		create, cap, expire, lastActivity, update, end timestamppb.Timestamp
	}{} // one piece of memory
	out := &m.session
	if err := proto.Unmarshal([]byte(r[0]), out); err != nil {
		return nil, fmt.Errorf("stored session: %w", err)
	}
	policy, err := s.policies.decode(r[1])
	if err != nil {
		return nil, err
	}
	if out.Labels, err = decodeLabels(r[2]); err != nil {
		return nil, err
	}
	if r[3] != "" {
		out.Data = &structpb.Value{}
		if err := proto.Unmarshal([]byte(r[3]), out.GetData()); err != nil {
			return nil, fmt.Errorf("stored data: %w", err)
		}
	}
	out.CreateTime = lifetime.SetTime(&m.create, number(r[12])) // pb may have another
	t := lifetime.NewTerms(number(r[12]), policy)
	st := lifetime.State{Expire: number(r[5]), Count: int32(number(r[6])), LastActivity: number(r[7])}
	out.TtlPolicy, out.CapTime = policy, lifetime.SetTime(&m.cap, t.Cap)
	out.ExpireTime, out.ExtensionCount, out.LastActivityTime = lifetime.SetTime(&m.expire, st.Expire), st.Count, lifetime.SetTime(&m.lastActivity, st.LastActivity)
	out.Revision, out.UpdateTime = number(r[8]), lifetime.SetTime(&m.update, number(r[9]))
	if over := overPhase(r[4]); over != sessionv1.Session_PHASE_UNSPECIFIED {
		out.Phase, out.EndTime, out.EndReason = over, lifetime.SetTime(&m.end, number(r[10])), r[11]
	} else if x, ended := s.endings.get(out.GetId()); live || !ended {
		out.Phase = lifetime.Phase(t, st, now)
	} else if x.kind == endingDeleted {
		return nil, storage.ErrNotFound
	} else {
		x.apply(out)
	}
	return out, nil
}

// overPhase is the phase of a state that is final.
func overPhase(st string) sessionv1.Session_Phase {
	switch st {
	case "1":
		return sessionv1.Session_ENDED
	case "2":
		return sessionv1.Session_EXPIRED
	default:
		return sessionv1.Session_PHASE_UNSPECIFIED
	}
}

// policyCache keeps decoded policies by their encoding: a deployment has few
// different ones, and every read needs one.
type policyCache struct {
	mu     sync.RWMutex
	byText map[string]*sessionv1.TTLPolicy
}

const maxPolicies = 1024

func (c *policyCache) decode(raw string) (*sessionv1.TTLPolicy, error) {
	c.mu.RLock()
	p := c.byText[raw]
	c.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	p = &sessionv1.TTLPolicy{}
	if err := proto.Unmarshal([]byte(raw), p); err != nil {
		return nil, fmt.Errorf("stored policy: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byText == nil || len(c.byText) >= maxPolicies {
		c.byText = map[string]*sessionv1.TTLPolicy{}
	}
	c.byText[raw] = p
	return p, nil
}
