package standalone

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// demoUsers live one session each, over and over: one works all the time, one
// only now and then, and for one only a machine does anything.
var demoUsers = []struct {
	name  string
	types []string
	every time.Duration
}{
	{"ann", []string{"input:text", "chat:send", "step:started", "step:finished"}, time.Second},
	{"bob", []string{"input:text"}, 20 * time.Second},
	{"crawler", []string{"registry:updated", "file:changed"}, 2 * time.Second},
}

// demo makes sample traffic until ctx ends.
func demo(ctx context.Context, conn grpc.ClientConnInterface, log *slog.Logger) error {
	client := sessionv1.NewStorageServiceClient(conn)
	for _, u := range demoUsers[1:] {
		go func() { demoUser(ctx, client, log, u.name, u.types, u.every) }()
	}
	u := demoUsers[0]
	demoUser(ctx, client, log, u.name, u.types, u.every)
	return ctx.Err()
}

func demoUser(ctx context.Context, client sessionv1.StorageServiceClient, log *slog.Logger, name string, types []string, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	id := ""
	for n := 0; ; n++ {
		if id == "" {
			s, err := client.CreateSession(ctx, &sessionv1.CreateSessionRequest{
				User: name, Project: "demo", Labels: map[string]string{"demo": "true"},
				TtlPolicy: &sessionv1.TTLPolicy{
					BaseTtl: durationpb.New(30 * time.Second), Extension: durationpb.New(20 * time.Second),
					MaxExtensions: proto.Int32(5), ExtendBelow: durationpb.New(10 * time.Second),
				},
			})
			if err == nil {
				id = s.GetId()
				log.InfoContext(ctx, "demo session", slog.String("user", name), slog.String("id", id))
			}
		}
		if id != "" {
			_, err := client.AppendEvents(ctx, &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{
				Type: types[n%len(types)], Source: "demo", Data: structpb.NewStringValue(fmt.Sprintf("number %d", n)),
			}}})
			if err != nil {
				id = "" // expired: the user comes back with a new session
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
