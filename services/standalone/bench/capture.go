package bench

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// templates are the calls of a script, by session: the arguments of EVALSHA,
// exactly as the store sends them. So a baseline runs the same script with the
// same arguments, and the benchmark knows nothing of keys and scripts.
type templates map[string][]any

// learn watches what the store sends to Redis while calls are made, and keeps
// the last script of each session. It fails when one of them had none.
func learn(ctx context.Context, redis string, ids []string, calls func() error) (templates, error) {
	lines, err := monitor(ctx, redis, calls)
	if err != nil {
		return nil, err
	}
	out := scriptsOf(lines, ids)
	if len(out) != len(ids) {
		return nil, fmt.Errorf("learned the scripts of %d sessions, want %d", len(out), len(ids))
	}
	return out, nil
}

// scriptsOf keeps the last script of each session. A store sends EVALSHA with the
// script's name, the number of keys, the keys, and the arguments, of which the first
// is the session that the script is about.
func scriptsOf(sent [][]string, ids []string) templates {
	out, wanted := templates{}, map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	for _, args := range sent {
		if len(args) < 4 || !strings.EqualFold(args[0], "evalsha") {
			continue
		}
		keys, err := strconv.Atoi(args[2])
		if err != nil || 3+keys >= len(args) || !wanted[args[3+keys]] {
			continue // one about a shard
		}
		call := make([]any, len(args))
		for i, a := range args {
			call[i] = a
		}
		out[args[3+keys]] = call
	}
	return out
}

// monitor returns the commands that clients send to Redis while do runs, those
// inside of scripts not included.
func monitor(ctx context.Context, redis string, do func() error) ([][]string, error) {
	var d net.Dialer
	watching, err := d.DialContext(ctx, "tcp", redis)
	if err != nil {
		return nil, err
	}
	defer watching.Close()
	if err := watching.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(watching, "MONITOR\r\n"); err != nil {
		return nil, err
	}
	in := bufio.NewReader(watching)
	if line, err := in.ReadString('\n'); err != nil || line != "+OK\r\n" {
		return nil, fmt.Errorf("MONITOR: %q %w", line, err)
	}
	// The end is marked by a command of ours, sent once all is done.
	marker := "ECHO " + rand.Text() + "\r\n"
	worked := make(chan error, 1)
	go func() {
		err := do()
		other, dialErr := d.DialContext(ctx, "tcp", redis)
		if dialErr != nil {
			worked <- errors.Join(err, dialErr, watching.Close())
			return
		}
		defer other.Close()
		_, markErr := io.WriteString(other, marker)
		_, readErr := bufio.NewReader(other).ReadString('\n')
		worked <- errors.Join(err, markErr, readErr)
	}()
	var out [][]string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, errors.Join(err, <-worked)
		}
		args, err := monitored(line)
		if err != nil {
			return nil, errors.Join(err, watching.Close(), <-worked)
		}
		if len(args) == 2 && "ECHO "+args[1]+"\r\n" == marker {
			return out, <-worked
		}
		if args != nil {
			out = append(out, args)
		}
	}
}

var monitorLine = regexp.MustCompile(`^\+[0-9.]+ \[[0-9]+ (\S+)\] `)

// monitored reads a line of MONITOR; nil for what a script did.
func monitored(line string) ([]string, error) {
	m := monitorLine.FindStringSubmatch(line)
	if m == nil {
		return nil, fmt.Errorf("MONITOR: unexpected line %q", line)
	}
	if m[1] == "lua" {
		return nil, nil
	}
	var args []string
	for rest := strings.TrimSpace(line[len(m[0]):]); rest != ""; rest = strings.TrimPrefix(rest, " ") {
		// Redis quotes and escapes as Go does.
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return nil, fmt.Errorf("MONITOR: %q: %w", rest, err)
		}
		arg, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, fmt.Errorf("MONITOR: %q: %w", quoted, err)
		}
		args = append(args, arg)
		rest = rest[len(quoted):] // and on, after the blank
	}
	return args, nil
}
