package redistest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// commandTimeout bounds one command, MIGRATE of many keys included.
const commandTimeout = 10 * time.Second

// replyError is an error reply of Redis: a code such as BUSYKEY, and a text.
type replyError string

func (e replyError) Error() string { return string(e) }

// command runs one command on a node over a connection of its own. It returns a
// string, an int64, nil or a []any of these. It speaks the protocol itself, since
// redis-cli takes no argument with a NUL, and keys of request ids have some.
func command(ctx context.Context, addr string, args ...string) (any, error) {
	return commandAs(ctx, addr, "", args...)
}

// commandAs is command after a login by a password, unless that is empty.
func commandAs(ctx context.Context, addr, password string, args ...string) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	replies := bufio.NewReader(conn)
	if password != "" {
		if _, err := exchange(conn, replies, "AUTH", password); err != nil {
			return nil, fmt.Errorf("%s AUTH: %w", addr, err)
		}
	}
	reply, err := exchange(conn, replies, args...)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", addr, args, err)
	}
	return reply, nil
}

// exchange sends one command and reads its reply.
func exchange(w io.Writer, replies *bufio.Reader, args ...string) (any, error) {
	var request strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(w, request.String()); err != nil {
		return nil, err
	}
	return readReply(replies)
}

// text is command for a reply that is a string.
func text(ctx context.Context, addr string, args ...string) (string, error) {
	return textAs(ctx, addr, "", args...)
}

// textAs is commandAs for a reply that is a string.
func textAs(ctx context.Context, addr, password string, args ...string) (string, error) {
	reply, err := commandAs(ctx, addr, password, args...)
	out, _ := reply.(string)
	return out, err
}

func readReply(r *bufio.Reader) (any, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, io.ErrUnexpectedEOF
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+':
		return rest, nil
	case '-':
		return nil, replyError(rest)
	}
	n, err := strconv.ParseInt(rest, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("reply %q: %w", line, err)
	}
	switch {
	case kind == ':':
		return n, nil
	case n < 0:
		return nil, nil //nolint:nilnil // a null reply
	case kind == '$':
		raw := make([]byte, n+2)
		_, err := io.ReadFull(r, raw)
		return string(raw[:n]), err
	case kind == '*':
		out := make([]any, n)
		for i := range out {
			if out[i], err = readReply(r); err != nil {
				return nil, err
			}
		}
		return out, nil
	default:
		return nil, fmt.Errorf("reply %q: unknown type", line)
	}
}
