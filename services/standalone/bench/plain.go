package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// plain is what one would write by hand instead: a gRPC service that does one
// HGETALL, or one script, per call with a default client.
type plain struct {
	sessionv1.UnimplementedStorageServiceServer
	redis    *goredis.Client
	scripts  templates
	extended *sessionv1.ExtendTTLResponse
}

func plainKey(id string) string { return "plain:" + id }

// GetSession reads the whole hash.
func (p *plain) GetSession(ctx context.Context, req *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
	h, err := p.redis.HGetAll(ctx, plainKey(req.GetId())).Result()
	if err != nil {
		return nil, err
	}
	if len(h) == 0 {
		return nil, status.Error(codes.NotFound, "no such session")
	}
	return fromHash(req.GetId(), h)
}

// ExtendTTL runs the very script that Stoker does, and answers as much.
func (p *plain) ExtendTTL(ctx context.Context, req *sessionv1.ExtendTTLRequest) (*sessionv1.ExtendTTLResponse, error) {
	args, ok := p.scripts[req.GetId()]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such session")
	}
	if _, err := p.redis.Do(ctx, args...).Slice(); err != nil {
		return nil, err
	}
	return p.extended, nil
}

var plainTimes = []string{"create", "update", "expire", "activity", "cap"}

// times are the fields of a session that plainTimes names.
func times(s *sessionv1.Session) []**timestamppb.Timestamp {
	return []**timestamppb.Timestamp{&s.CreateTime, &s.UpdateTime, &s.ExpireTime, &s.LastActivityTime, &s.CapTime}
}

// toHash spells a session as the fields of a hash.
func toHash(s *sessionv1.Session) ([]any, error) {
	labels, err := json.Marshal(s.GetLabels())
	if err != nil {
		return nil, err
	}
	data, err1 := proto.Marshal(s.GetData())
	policy, err2 := proto.Marshal(s.GetTtlPolicy())
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("%w, %w", err1, err2)
	}
	out := []any{
		"user", s.GetUser(), "project", s.GetProject(), "labels", labels, "data", data, "policy", policy,
		"phase", int(s.GetPhase()), "revision", s.GetRevision(), "extensions", s.GetExtensionCount(),
	}
	for i, t := range times(s) {
		out = append(out, plainTimes[i], (*t).AsTime().UnixMilli())
	}
	return out, nil
}

func fromHash(id string, h map[string]string) (*sessionv1.Session, error) {
	num := func(field string) int64 {
		n, _ := strconv.ParseInt(h[field], 10, 64)
		return n
	}
	s := &sessionv1.Session{
		Id: id, User: h["user"], Project: h["project"], Phase: sessionv1.Session_Phase(num("phase")),
		Revision: num("revision"), ExtensionCount: int32(num("extensions")), Data: &structpb.Value{}, TtlPolicy: &sessionv1.TTLPolicy{},
	}
	if err := json.Unmarshal([]byte(h["labels"]), &s.Labels); err != nil {
		return nil, err
	}
	if err := proto.Unmarshal([]byte(h["data"]), s.GetData()); err != nil {
		return nil, err
	}
	if err := proto.Unmarshal([]byte(h["policy"]), s.GetTtlPolicy()); err != nil {
		return nil, err
	}
	for i, t := range times(s) {
		*t = timestamppb.New(time.UnixMilli(num(plainTimes[i])))
	}
	return s, nil
}

// plainConfig is what a plain service is told, in a file.
type plainConfig struct {
	Redis    string    `json:"redis"`
	Scripts  templates `json:"scripts"`
	Extended []byte    `json:"extended"`
}

func servePlain(ctx context.Context, args []string, ready func(hello) error) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	var cfg plainConfig
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return err
	}
	p := &plain{redis: goredis.NewClient(&goredis.Options{Addr: cfg.Redis}), scripts: cfg.Scripts, extended: &sessionv1.ExtendTTLResponse{}}
	defer p.redis.Close()
	if err := proto.Unmarshal(cfg.Extended, p.extended); err != nil {
		return err
	}
	return serveBare(ctx, p, ready)
}
