package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// finalRefusals are the replies to a command that is wrong in itself: the server can
// do its work, and the same command will be refused again. They are the only replies
// that are final. Every other error reply, known or not, means that the server cannot
// do the work now: it counts against the server's breaker, callers get
// storage.ErrUnavailable, and the journal takes the write. A client's input must not
// open a breaker, so what input can provoke belongs here.
var finalRefusals = []string{
	"ERR malformed record", // of reindex.lua
	"WRONGTYPE",            // the key holds another type: the data is not ours
	"CROSSSLOT",            // keys of several slots: a defect of ours
	"ERR user_script:",     // a script failed by itself (Redis 7)
	"ERR Error compiling",  // a script is malformed
	"ERR Error running",    // a script failed by itself (before Redis 7); see passedOn
	"ERR syntax error",
	"ERR wrong number of arguments",
	"ERR Wrong number of args",
	"ERR value is not",
	"ERR hash value is not",
	"ERR increment or decrement would overflow",
	"ERR min or max",
	"ERR Invalid stream ID",
	"ERR The ID specified in XADD",
	"ERR The stream has exhausted",
	"ERR string exceeds maximum allowed size",
}

// movingCodes are the replies to a command whose slot is on its way from one node
// to another. Neither node is at fault, nothing of the command has run, and it
// will be answered once the slot has arrived.
var movingCodes = []string{
	"TRYAGAIN", // some of its keys have moved already, or are not there
	"MOVED",    // it was sent on, and the slot had moved on again
	"ASK",
	// From scripts that touch keys which they do not declare. Ours declare all;
	// should one not, it must not be taken for a verdict on the session.
	"ERR Script attempted to access a non local key",
	"Script attempted to access a non local key",
}

// isMoving says whether a command met a moving slot.
func isMoving(err error) bool {
	var server goredis.Error
	return errors.As(err, &server) && hasCode(server.Error(), movingCodes)
}

// isFault is the one place that tells a fault of the infrastructure from an
// answer. Only faults move a circuit breaker, and only they are worth a retry. An
// error of a kind that is not known is a fault.
func isFault(err error) bool {
	if err == nil {
		return false // before what follows takes memory
	}
	var open *resilience.OpenError
	var server goredis.Error
	var left departureError
	switch {
	case errors.As(err, &left),
		errors.Is(err, goredis.Nil),
		errors.Is(err, context.Canceled),  // the caller has left
		errors.Is(err, goredis.ErrClosed), // we have closed
		errors.As(err, &open):             // not a call at all
		return false
	case errors.As(err, &server):
		reply := server.Error()
		return !hasCode(reply, movingCodes) && !noScript(server) && !isFinal(reply)
	default:
		return true
	}
}

// outcomeOf is what a round trip that ended with err says about the server.
func outcomeOf(err error) resilience.Outcome {
	switch {
	case !isFault(err):
		return resilience.Success
	case isStale(err), errors.Is(err, goredis.ErrPoolTimeout), errors.Is(err, goredis.ErrPoolExhausted):
		// The connection had ended before, or there was none to send it on.
		return resilience.Neutral
	default:
		return resilience.Fault
	}
}

// isFinal says whether a reply refuses the command itself.
func isFinal(reply string) bool {
	if passed := passedOn(reply); passed != "" {
		reply = passed
	}
	if strings.Contains(reply, "SCRIPT KILL") {
		return false // an operator has ended a script
	}
	for _, beginning := range finalRefusals {
		if strings.HasPrefix(reply, beginning) {
			return true
		}
	}
	return false
}

// passedOn returns the error of a command inside a script, which servers before
// Redis 7 put behind "@user_script: 1: -"; empty for none.
func passedOn(reply string) string {
	const script = "@user_script:"
	at := strings.LastIndex(reply, script)
	if at < 0 || !strings.HasPrefix(reply, "ERR ") {
		return ""
	}
	_, passed, _ := strings.Cut(reply[at+len(script):], ": ")
	code, found := strings.CutPrefix(passed, "-")
	if !found && !strings.HasPrefix(passed, "Script attempted") {
		return ""
	}
	return code
}

// hasCode looks at the beginning of a reply, and of what a script passed on.
func hasCode(reply string, codes []string) bool {
	passed := passedOn(reply)
	for _, code := range codes {
		for _, text := range []string{reply, passed} {
			if rest, ok := strings.CutPrefix(text, code); ok && (rest == "" || rest[0] == ' ') {
				return true
			}
		}
	}
	return false
}

// retiringCodes are the replies that say that a connection leads to the wrong server,
// or has the wrong login: another one may not.
var retiringCodes = []string{"READONLY", "NOAUTH", "NOPERM", "DENIED", "ERR Protocol error"}

// isRetiring says whether connections to the server should be made anew.
func isRetiring(err error) bool {
	var server goredis.Error
	return err != nil && errors.As(err, &server) && !isRefusedLogin(err) && hasCode(strings.Replace(server.Error(), ":", " ", 1), retiringCodes)
}

// isRefusedLogin says whether a new connection could not log in. That says nothing of
// those that are logged in.
func isRefusedLogin(err error) bool {
	var server goredis.Error
	var login loginError
	return err != nil && (errors.As(err, &login) || errors.As(err, &server) && hasCode(server.Error(), []string{"WRONGPASS", "NOAUTH HELLO"}))
}

// failure maps what Redis or the network answered. A caller whose context
// ended gets the context's error. A fault means that the store cannot answer, and
// that a write may or may not have been applied; a final refusal is a defect of ours
// or of the data.
func failure(err error) error {
	if err == nil {
		return nil // before what follows takes memory
	}
	var open *resilience.OpenError
	var left departureError
	var route routeError
	switch {
	case errors.Is(err, goredis.Nil), errors.Is(err, context.Canceled), errors.As(err, &left):
		return err
	case errors.Is(err, goredis.ErrClosed):
		return storage.ErrClosed
	case errors.As(err, &open), errors.As(err, &route), isFault(err), isMoving(err), noScript(err):
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	default:
		return fmt.Errorf("redis: %w", err)
	}
}
