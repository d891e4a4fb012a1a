package rpc

import (
	"fmt"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func violations(bad *protovalidate.ValidationError) []Violation {
	out := make([]Violation, 0, len(bad.Violations))
	for _, v := range bad.Violations {
		out = append(out, Violation{
			Field: jsonPath(v.Proto.GetField()),
			Value: valueText(v.FieldDescriptor, v.FieldValue),
			Want:  want(v.Proto),
		})
	}
	return out
}

// want turns a rule's message into what was expected.
func want(v *validate.Violation) string {
	msg := v.GetMessage()
	if v.GetRuleId() == "required" {
		return "a value" // "is required" is none that could be wanted
	}
	for _, prefix := range []string{"value ", "must be ", "must "} {
		msg = strings.TrimPrefix(msg, prefix)
	}
	if msg == "" {
		return "something that satisfies " + v.GetRuleId()
	}
	return msg
}

// jsonPath spells a field's path as JSON callers know it: events[3].traceparent,
// ttlPolicy.baseTtl, labels["a"].
func jsonPath(p *validate.FieldPath) string {
	var b strings.Builder
	for i, e := range p.GetElements() {
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(JSONName(e.GetFieldName()))
		switch s := e.GetSubscript().(type) {
		case *validate.FieldPathElement_Index:
			fmt.Fprintf(&b, "[%d]", s.Index)
		case *validate.FieldPathElement_StringKey:
			fmt.Fprintf(&b, "[%q]", Shorten(s.StringKey))
		case *validate.FieldPathElement_IntKey:
			fmt.Fprintf(&b, "[%d]", s.IntKey)
		case *validate.FieldPathElement_UintKey:
			fmt.Fprintf(&b, "[%d]", s.UintKey)
		case *validate.FieldPathElement_BoolKey:
			fmt.Fprintf(&b, "[%t]", s.BoolKey)
		}
	}
	return b.String()
}

// JSONName is a proto field's name in JSON: lowerCamelCase.
func JSONName(name string) string {
	var b strings.Builder
	upper := false
	for _, r := range name {
		switch {
		case r == '_':
			upper = true
		case upper && r >= 'a' && r <= 'z':
			b.WriteRune(r - 'a' + 'A')
			upper = false
		default:
			b.WriteRune(r)
			upper = false
		}
	}
	return b.String()
}

// valueText shows a value in an error: scalars, durations and times; never a
// payload.
func valueText(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if fd == nil || !v.IsValid() || fd.Kind() == protoreflect.BytesKind {
		return ""
	}
	switch x := v.Interface().(type) {
	case protoreflect.List:
		return fmt.Sprintf("%d items", x.Len())
	case protoreflect.Map:
		return fmt.Sprintf("%d entries", x.Len())
	case protoreflect.EnumNumber:
		return fmt.Sprint(int32(x))
	case protoreflect.Message:
		switch m := x.Interface().(type) {
		case *durationpb.Duration:
			return durationText(m)
		case *timestamppb.Timestamp:
			return m.AsTime().String()
		default:
			return ""
		}
	default:
		return fmt.Sprint(x)
	}
}

// durationText spells a duration in seconds, as JSON does; Go's own type would
// overflow at 292 years.
func durationText(d *durationpb.Duration) string {
	if d.GetNanos() == 0 {
		return fmt.Sprintf("%ds", d.GetSeconds())
	}
	return d.AsDuration().String()
}
