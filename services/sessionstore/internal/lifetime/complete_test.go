package lifetime_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// TestComplete: a policy with every field set takes nothing from another one, and
// one that lacks any field does.
func TestComplete(t *testing.T) {
	whole := lifetime.DefaultPolicy()
	whole.MaxLifetime = durationpb.New(time.Hour)
	whole.ActivityRules = []*sessionv1.ActivityRule{{Pattern: "*", Kind: "event"}}
	if !lifetime.Complete(whole) {
		t.Error("a policy with every field is not complete")
	}
	if lifetime.Complete(nil) {
		t.Error("none is complete")
	}
	whole.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		less := proto.CloneOf(whole)
		less.ProtoReflect().Clear(f)
		if lifetime.Complete(less) {
			t.Errorf("complete without %s", f.Name())
		}
		return true
	})
	fields := whole.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); !whole.ProtoReflect().Has(f) {
			t.Errorf("%s is new: Resolve and Complete must agree about it", f.Name())
		}
	}
}
