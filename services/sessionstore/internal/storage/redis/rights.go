package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// checkRightsScript returns the numbers of the calls that the user may not make, -1
// where the server cannot say: before Redis 7. A command that a server does not have
// needs no right there.
const checkRightsScript = `
if not redis.acl_check_cmd then return -1 end
local denied, n, at = {}, 0, 1
while at <= #ARGV do
  n = n + 1
  local size = tonumber(ARGV[at])
  local known, allowed = pcall(redis.acl_check_cmd, unpack(ARGV, at + 1, at + size))
  if known and not allowed then denied[#denied + 1] = n end
  at = at + 1 + size
end
return denied`

// rightsError says that the ACL user lacks rights.
type rightsError struct {
	node, user string
	// missing are commands, rules what to add.
	missing, rules []string
}

func (e *rightsError) Error() string {
	at := ""
	if e.node != "" {
		at = " of node " + e.node
	}
	return fmt.Sprintf("the ACL user %s%s lacks rights: %s; run ACL SETUSER %s %s", e.user, at, strings.Join(e.missing, ", "), e.user, strings.Join(e.rules, " "))
}

// checkRights returns a *rightsError for each server where the login lacks rights
// that the store needs, and raises or clears a warning for each.
func (s *Store) checkRights(ctx context.Context) error {
	servers, err := s.conn.read.servers(ctx)
	if err != nil {
		return s.noteRights(ctx, "", err)
	}
	calls := s.checksOfRights()
	args := []any{"eval", checkRightsScript, 0}
	for _, c := range calls {
		args = append(args, len(c.args))
		for _, a := range c.args {
			args = append(args, a)
		}
	}
	var lacks, failures []error
	seen := map[string]bool{}
	for _, server := range servers {
		node := ""
		if s.conn.cluster {
			node = server.Options().Addr
		}
		seen[node] = true
		reply, err := s.askRights(ctx, server, args)
		if err == nil {
			err = s.lackOf(node, calls, reply)
		}
		err = s.noteRights(ctx, node, err)
		if lack := (*rightsError)(nil); errors.As(err, &lack) {
			lacks = append(lacks, err)
		} else if err != nil {
			failures = append(failures, err)
		}
	}
	s.warnings.ClearOthers(ctx, codeRights, seen) // nodes that have left, or are known by their address now
	if len(lacks) == 0 && len(failures) < len(servers) {
		return nil // a node that does not answer is no reason not to use the others
	}
	return errors.Join(append(lacks, failures...)...)
}

// askRights makes one round trip that no breaker sees: a refusal of the script says
// nothing about the server's health.
func (s *Store) askRights(ctx context.Context, server *goredis.Client, args []any) (any, error) {
	ctx, cancel := context.WithTimeout(pastBreakers(ctx), s.opts.Timeout)
	defer cancel()
	cmd := goredis.NewCmd(ctx, args...)
	err := server.Process(ctx, cmd)
	return cmd.Val(), err
}

// codeRights is the code of the warning that an ACL user lacks rights.
const codeRights = "rights"

// noteRights turns the refusal of a command, such as the script itself, into a
// *rightsError, and raises or clears the warning.
func (s *Store) noteRights(ctx context.Context, node string, err error) error {
	if command := deniedCommand(err); command != "" {
		err = &rightsError{node: node, user: s.user(), missing: []string{command}, rules: []string{"+" + command}}
	}
	var lack *rightsError
	switch {
	case err == nil:
		s.warnings.Clear(ctx, codeRights, node)
		return nil
	case errors.As(err, &lack):
		s.warnings.Raise(ctx, codeRights, node, err.Error())
		return err
	default:
		return failure(err)
	}
}

// deniedCommand returns the command that an error says the user may not run: "NOPERM
// User ann has no permissions to run the 'cluster|slots' command".
func deniedCommand(err error) string {
	if err == nil || !strings.Contains(err.Error(), "NOPERM ") {
		return ""
	}
	_, quoted, _ := strings.Cut(err.Error(), "run the '")
	command, _, found := strings.Cut(quoted, "'")
	if !found {
		return ""
	}
	return command
}

// user returns the name that the store logs in with.
func (s *Store) user() string {
	if user := s.conn.access.target.user; user != "" {
		return user
	}
	return "default"
}

// lackOf reads the reply of the script.
func (s *Store) lackOf(node string, calls []call, reply any) error {
	numbers, _ := reply.([]any)
	denied := map[*right]bool{}
	var keys []string
	for _, n := range numbers {
		i, _ := n.(int64)
		if i < 1 || int(i) > len(calls) {
			continue
		}
		if c := calls[i-1]; c.of != nil {
			denied[c.of] = true
		} else {
			keys = append(keys, c.key)
		}
	}
	if len(numbers) == 0 {
		return nil
	}
	lack := &rightsError{node: node, user: s.user()}
	lack.explain(calls, denied, keys)
	return lack
}

// explain tells commands from keys: a call is denied for either.
func (e *rightsError) explain(calls []call, denied map[*right]bool, keys []string) {
	all, allWrites, hincrby := true, true, false
	for _, c := range calls {
		if c.of == nil || !c.of.hasKey() {
			continue
		}
		all = all && denied[c.of]
		allWrites = allWrites && (denied[c.of] || !c.of.writes())
		hincrby = hincrby || denied[c.of] && c.of.name == "hincrby"
	}
	pattern := ""
	switch {
	case all:
		pattern = "reading and writing the keys " + keyPattern
	case allWrites:
		pattern = "writing the keys " + keyPattern
	case len(keys) > 0 && !hincrby: // else every key is denied
		slices.Sort(keys)
		pattern = "the keys " + strings.Join(keys[:min(len(keys), 3)], ", ")
		if len(keys) > 3 {
			pattern += fmt.Sprintf(" and %d more", len(keys)-3)
		}
	}
	if pattern != "" {
		e.missing, e.rules = append(e.missing, pattern), append(e.rules, "~"+keyPattern)
	}
	for _, c := range calls {
		if c.of == nil || !denied[c.of] || c.of.hasKey() && all || c.of.writes() && allWrites {
			continue
		}
		e.missing, e.rules = append(e.missing, c.of.name), append(e.rules, "+"+c.of.name)
	}
}

// checkInterval is how often rights and the files of logins are checked.
const checkInterval = time.Minute

// watchAccess checks rights and files until the store is closed.
func (s *Store) watchAccess() {
	every := s.opts.checkEvery
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.closed:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), every)
		if err := s.conn.access.checkFiles(); err != nil {
			s.warnings.Raise(ctx, "login-files", "", "a file cannot be used, its last content stays in force: "+err.Error())
		} else {
			s.warnings.Clear(ctx, "login-files", "")
		}
		_ = s.checkRights(ctx) // it raises warnings; a server that does not answer is reported elsewhere
		cancel()
	}
}
