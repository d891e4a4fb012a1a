package server

import sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"

// Plain says of a request with many items that it satisfies the rules of the
// protos, where a glance shows it; of all others it says nothing. The rules
// stay in the protos alone, and a test holds this to them: it exists because
// they are judged by reflection, which costs more than the rest of an
// AppendEvents.
func Plain(req any) bool {
	switch r := req.(type) {
	case *sessionv1.AppendEventsRequest:
		return r.GetId() != "" && all(r.GetEvents(), 500, plainEvent)
	case *sessionv1.BatchExtendTTLRequest:
		return all(r.GetItems(), 1000, plainExtend)
	default:
		return false
	}
}

func all[T any](items []T, most int, plain func(T) bool) bool {
	for _, i := range items {
		if !plain(i) {
			return false
		}
	}
	return len(items) >= 1 && len(items) <= most
}

func plainEvent(e *sessionv1.Event) bool {
	return e != nil && plainType(e.GetType()) && printable(e.GetId()) && len(e.GetSource()) <= 256 && len(e.GetSubject()) <= 1024 &&
		e.GetTraceparent() == ""
}

func plainExtend(r *sessionv1.ExtendTTLRequest) bool {
	kind := r.GetActivityKind()
	for i := range len(kind) {
		if !letter(kind[i]) && (i == 0 || !digit(kind[i]) && kind[i] != '_') {
			return false
		}
	}
	return r.GetId() != "" && len(kind) <= 32 && printable(r.GetEventId()) && len(r.GetCounts()) == 0
}

// plainType is names of letters, digits and "_.-" with ":" between them.
func plainType(s string) bool {
	inName := false
	for i := range len(s) {
		switch c := s[i]; {
		case letter(c), digit(c), c == '_', c == '.', c == '-':
			inName = true
		case c == ':' && inName:
			inName = false
		default:
			return false
		}
	}
	return inName && len(s) <= 128
}

// printable is up to 128 characters of ASCII that leave a mark.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < '!' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= 128
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }
