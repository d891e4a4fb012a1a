//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc/codes"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// What a client asks. All creations of a history have the same request id, so
// that there is one session at a time, and a new one after a deletion.
type linKind uint8

const (
	linCreate linKind = iota
	linGet
	linUpdate
	linExtend
	linDelete
)

// linIn is a call.
type linIn struct {
	kind linKind
	id   string
	// value is what a creation or an update stores.
	value string
	// etag is the revision that an update expects, 0 for any.
	etag int64
	// told: the read is of what a creation was answered, which is how the id of
	// a session becomes known.
	told bool
}

// linOut is an answer.
type linOut struct {
	// unknown: no answer came, or that the store cannot tell. The call may have
	// been carried out, may still be at any later time, or never.
	unknown bool
	code    codes.Code
	linSession
	outcome sessionv1.ExtendTTLResponse_Outcome
}

// linSession is what there is of a session to be seen.
type linSession struct {
	id    string
	value string
	rev   int64
	ext   int32
}

// linState is what there is: a session or none, and those that are gone for
// ever. A session that was made by a creation whose answer is unknown has the id
// "?" until somebody is told.
type linState struct {
	live bool
	linSession
	gone string // ids, each with a space after it
}

func (s linState) is(id string) bool { return s.live && s.id == id }

func (s linState) hasGone(id string) bool { return id != "" && strings.Contains(s.gone, id+" ") }

// steps are the states that a call may lead to with this answer; none where it
// cannot have been given.
func (s linState) steps(in linIn, out linOut) []linState {
	next, want := s.does(in)
	if out.unknown {
		if in.kind == linCreate && s.hasGone(in.id) {
			return []linState{s}
		}
		return []linState{s, next}
	}
	if want.code != out.code {
		return nil
	}
	switch {
	case in.kind == linDelete, in.kind != linExtend && out.code != codes.OK:
		return []linState{next}
	case in.kind == linExtend:
		return s.extended(in, next, want, out)
	case in.kind == linCreate && next.id == "?":
		if s.hasGone(out.id) {
			return nil // an id that was deleted has come back
		}
		next.id, want.id = out.id, out.id
	}
	if want.linSession != out.linSession {
		return nil
	}
	return []linState{next}
}

// extended judges an answer to a report of activity. A report whose first try
// was carried out and not answered is answered NOT_NEEDED by the second, since
// it counts once: that is its contract.
func (s linState) extended(in linIn, next linState, want, out linOut) []linState {
	switch {
	case want.outcome == out.outcome && want.ext == out.ext:
		return []linState{next}
	case out.outcome == sessionv1.ExtendTTLResponse_NOT_NEEDED && s.is(in.id) && out.ext >= next.ext:
		return []linState{next}
	default:
		return nil
	}
}

// does carries a call out: the specification.
func (s linState) does(in linIn) (next linState, want linOut) {
	next = s
	missing := !s.is(in.id)
	switch in.kind {
	case linCreate:
		if !s.live {
			next.live, next.linSession = true, linSession{id: cmp.Or(in.id, "?"), value: in.value, rev: 1}
		}
		want.linSession = next.linSession
	case linGet:
		if in.told && s.live && s.id == "?" && !s.hasGone(in.id) {
			next.id = in.id
			return next, linOut{linSession: next.linSession}
		}
		if missing {
			return s, linOut{code: codes.NotFound}
		}
		want.linSession = s.linSession
	case linUpdate:
		switch {
		case missing:
			return s, linOut{code: codes.NotFound}
		case in.etag != 0 && in.etag != s.rev:
			return s, linOut{code: codes.Aborted}
		}
		next.value, next.rev = in.value, s.rev+1
		want.linSession = next.linSession
	case linExtend:
		if missing {
			return s, linOut{outcome: sessionv1.ExtendTTLResponse_NOT_FOUND}
		}
		next.ext, next.rev = s.ext+1, s.rev+1
		want.outcome, want.linSession = sessionv1.ExtendTTLResponse_EXTENDED, next.linSession
	case linDelete:
		if missing {
			return s, linOut{code: codes.NotFound}
		}
		next = linState{gone: s.gone + s.id + " "}
	}
	return next, want
}

// twice spells a history for a store that tries a call again whose answer was
// lost: what the answer of the last try tells is what there was at the time of
// that one, and the effect may be that of one before. So a write becomes a write
// that may have taken effect, and a read of what was answered, both between the
// call and its answer.
func twice(history []porcupine.Operation) []porcupine.Operation {
	var out []porcupine.Operation
	for _, op := range history {
		in, got := op.Input.(linIn), op.Output.(linOut)
		missing := got.code == codes.NotFound || got.outcome == sessionv1.ExtendTTLResponse_NOT_FOUND
		read := op
		switch {
		case got.unknown, got.code == codes.Aborted:
			out = append(out, op)
			continue
		case in.kind == linCreate:
			in.id = got.id // it may be this call that has made it
			fallthrough
		case in.kind == linUpdate && !missing:
			read.Output = linOut{linSession: got.linSession}
		case in.kind == linUpdate, in.kind == linExtend && missing, in.kind == linDelete && !missing:
			read.Output = linOut{code: codes.NotFound}
		default:
			out = append(out, op)
			continue
		}
		read.Input = linIn{kind: linGet, id: in.id, told: in.kind == linCreate}
		op.Input, op.Output = in, linOut{unknown: true}
		out = append(out, op, read)
	}
	return out
}

// linModel is the specification as porcupine takes it.
func linModel() porcupine.Model {
	nondeterministic := porcupine.NondeterministicModel{
		Init: func() []any { return []any{linState{}} },
		Step: func(state, input, output any) []any {
			var out []any
			for _, s := range state.(linState).steps(input.(linIn), output.(linOut)) {
				out = append(out, s)
			}
			return out
		},
		Equal: func(a, b any) bool { return a == b },
	}
	return nondeterministic.ToModel()
}

func (k linKind) String() string {
	return [...]string{"create", "get", "update", "extend", "delete"}[k]
}

func (s linSession) String() string {
	return fmt.Sprintf("%s=%s rev %d ext %d", s.id, s.value, s.rev, s.ext)
}

// spell prints a history in the order of its calls.
func spell(history []porcupine.Operation) string {
	ops := slices.Clone(history)
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var b strings.Builder
	for _, op := range ops {
		in, out := op.Input.(linIn), op.Output.(linOut)
		fmt.Fprintf(&b, "  client %d, %9.3f to %9.3f ms: %v %s", op.ClientId, float64(op.Call)/1e6, float64(op.Return)/1e6, in.kind, in.id)
		if in.value != "" {
			fmt.Fprintf(&b, " value %s", in.value)
		}
		if in.etag != 0 {
			fmt.Fprintf(&b, " etag %d", in.etag)
		}
		switch {
		case out.unknown:
			fmt.Fprintf(&b, " -> unknown (%v)\n", out.code)
		case out.code != codes.OK:
			fmt.Fprintf(&b, " -> %v\n", out.code)
		default:
			fmt.Fprintf(&b, " -> %v %v\n", out.linSession, out.outcome)
		}
	}
	return b.String()
}
