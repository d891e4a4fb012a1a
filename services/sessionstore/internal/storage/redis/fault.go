package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// faultCodes are the replies of a server that cannot do its work now, whatever
// it is asked (redis.io/docs, error codes of the commands' pages).
var faultCodes = []string{
	"LOADING",     // it is reading its data
	"READONLY",    // it was a master, and is a replica now
	"MASTERDOWN",  // a replica whose master is gone
	"CLUSTERDOWN", // a slot has no node
	"OOM",         // maxmemory is reached, and nothing may be evicted
	"MISCONF",     // it cannot persist, and refuses writes
	"NOREPLICAS",  // too few replicas are in touch
	"BUSY",        // a script does not come to its end
	// It takes no more connections; the one such reply without a code.
	"ERR max number of clients reached",
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
// answer. Only faults move a circuit breaker, and only they are worth a retry.
func isFault(err error) bool {
	if err == nil {
		return false // before what follows takes memory
	}
	var open *resilience.OpenError
	var server goredis.Error
	var network net.Error
	var left departureError
	switch {
	case errors.As(err, &left),
		errors.Is(err, goredis.Nil),
		errors.Is(err, context.Canceled),  // the caller has left
		errors.Is(err, goredis.ErrClosed), // we have closed
		errors.As(err, &open):             // not a call at all
		return false
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, goredis.ErrPoolTimeout), errors.Is(err, goredis.ErrPoolExhausted):
		return true
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return true
	case errors.As(err, &server):
		return hasCode(server.Error(), faultCodes)
	default:
		return false
	}
}

// hasCode looks at the beginning of a reply, and of what a script passed on:
// before Redis 7 that comes after "@user_script: 1: -".
func hasCode(reply string, codes []string) bool {
	const script = "@user_script:"
	passed := ""
	if at := strings.LastIndex(reply, script); at >= 0 && strings.HasPrefix(reply, "ERR ") {
		_, passed, _ = strings.Cut(reply[at+len(script):], ": ")
		passed = strings.TrimPrefix(passed, "-")
	}
	for _, code := range codes {
		for _, text := range []string{reply, passed} {
			if rest, ok := strings.CutPrefix(text, code); ok && (rest == "" || rest[0] == ' ') {
				return true
			}
		}
	}
	return false
}

// failure maps what Redis or the network answered. A caller whose context
// ended gets the context's error. A fault means that the store cannot answer,
// and that a write may or may not have been applied; any other refusal by the
// server is a defect of ours or of its configuration.
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
	case errors.As(err, &open), errors.As(err, &route), isFault(err), isMoving(err):
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	default:
		return fmt.Errorf("redis: %w", err)
	}
}
