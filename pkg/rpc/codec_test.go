package rpc

import (
	"testing"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"pgregory.net/rapid"

	_ "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	_ "github.com/livinguniverse/stoker/proto/gen/stoker/journal/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestCodecWritesWhatProtobufReads for every message there is, with any content.
func TestCodecWritesWhatProtobufReads(t *testing.T) {
	var kinds []protoreflect.MessageType
	protoregistry.GlobalTypes.RangeMessages(func(m protoreflect.MessageType) bool {
		if m.Descriptor().ParentFile().Package().Parent().Parent() == "stoker" && !m.Descriptor().IsMapEntry() {
			kinds = append(kinds, m)
		}
		return true
	})
	if len(kinds) < 60 {
		t.Fatalf("only %d kinds of messages", len(kinds))
	}
	written, c := 0, newCodec()
	for _, kind := range kinds {
		if _, ok := kind.New().Interface().(interface{ SizeVT() int }); ok {
			written++
		}
		t.Run(string(kind.Descriptor().Name()), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				in := kind.New()
				fill(t, in, 4)
				if rapid.IntRange(0, 9).Draw(t, "unknown") == 0 {
					in.SetUnknown(protoreflect.RawFields{0xfa, 0x3f, 1, 'x'})
				}
				data, err := c.Marshal(in.Interface())
				if err != nil {
					t.Fatal(err)
				}
				defer data.Free()
				out := kind.New().Interface()
				if err := proto.Unmarshal(data.Materialize(), out); err != nil || !proto.Equal(in.Interface(), out) {
					t.Fatalf("%v came back as %v, %v", in, out, err)
				}
			})
		})
	}
	if written != len(kinds) {
		t.Errorf("code is generated for %d of %d kinds", written, len(kinds))
	}
}

// fill gives any fields of a message any values.
func fill(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if depth == 0 && f.Message() != nil || rapid.IntRange(0, 2).Draw(t, "has") == 0 {
			continue
		}
		n := rapid.IntRange(0, 3).Draw(t, "length")
		switch {
		case f.IsMap():
			values := m.Mutable(f).Map()
			for range n {
				values.Set(value(t, m, f.MapKey(), depth, nil).MapKey(), value(t, m, f.MapValue(), depth, values.NewValue))
			}
		case f.IsList():
			values := m.Mutable(f).List()
			for range n {
				values.Append(value(t, m, f, depth, values.NewElement))
			}
		default:
			m.Set(f, value(t, m, f, depth, func() protoreflect.Value { return m.NewField(f) }))
		}
	}
}

func value(t *rapid.T, m protoreflect.Message, f protoreflect.FieldDescriptor, depth int, empty func() protoreflect.Value) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.Int32().Draw(t, "enum")))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32"))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, "uint64"))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(rapid.Float32().Draw(t, "float"))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(rapid.Float64().Draw(t, "double"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.String().Draw(t, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
	case protoreflect.MessageKind, protoreflect.GroupKind:
		v := empty()
		fill(t, v.Message(), depth-1)
		return v
	default:
		t.Fatalf("%s.%s is of an unknown kind", m.Descriptor().Name(), f.Name())
		return protoreflect.Value{}
	}
}

// TestCodecKnowsOtherMessages, which have no code generated for them.
func TestCodecKnowsOtherMessages(t *testing.T) {
	c := newCodec()
	data, err := c.Marshal(&healthv1.HealthCheckRequest{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	var out healthv1.HealthCheckRequest
	if err := c.Unmarshal(data, &out); err != nil || out.GetService() != "x" {
		t.Errorf("%v, %v", &out, err)
	}
	if _, err := c.Marshal("no message"); err == nil {
		t.Error("a string was written")
	}
}

// TestCodecUsesThePool for what is large, and not beyond its use.
func TestCodecUsesThePool(t *testing.T) {
	large := &sessionv1.Session{User: string(make([]byte, 4096))}
	data, err := newCodec().Marshal(large)
	if err != nil || len(data) != 1 {
		t.Fatal(len(data), err)
	}
	if _, own := data[0].(mem.SliceBuffer); own {
		t.Error("a buffer of its own")
	}
	data.Free()
}
