// Package redistest starts private Redis servers for tests: real processes on
// free ports, each with a directory of its own, ended with the test.
package redistest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds how long a server may take to answer.
const startTimeout = 10 * time.Second

// Server is a running redis-server.
type Server struct {
	// Addr is host:port.
	Addr string

	dir  string
	args []string
	log  *os.File
	cmd  *exec.Cmd
	done chan struct{}
}

// URL is how to connect to the server.
func (s *Server) URL() string { return "redis://" + s.Addr + "/0" }

// Launch starts a server in dir with further arguments. The caller must Stop
// it.
func Launch(ctx context.Context, dir string, args ...string) (*Server, error) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil, fmt.Errorf("redis-server was not found: run `make deps`: %w", err)
	}
	var lastErr error
	for range 5 { // somebody else may take the free port first
		addr, err := freeAddr(ctx)
		if err != nil {
			return nil, err
		}
		s := &Server{Addr: addr, dir: dir, args: args}
		if lastErr = s.start(ctx); lastErr == nil {
			return s, nil
		}
	}
	return nil, lastErr
}

// Start starts a server without persistence for a test and its subtests.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := Launch(t.Context(), t.TempDir(), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func freeAddr(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (s *Server) start(ctx context.Context) error {
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	if s.log, err = os.OpenFile(filepath.Join(s.dir, "redis-"+port+".log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		return err
	}
	args := append([]string{
		"--port", port, "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "no", "--daemonize", "no",
	}, s.args...)
	s.cmd = exec.Command("redis-server", args...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait()
	}()
	return s.awaitReady(ctx)
}

func (s *Server) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		select {
		case <-s.done:
			return fmt.Errorf("redis-server ended: %s", s.tail())
		default:
		}
		if answer, err := s.command(ctx, "PING"); err == nil && strings.HasPrefix(answer, "+PONG") {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.Join(fmt.Errorf("redis-server did not answer within %s: %s", startTimeout, s.tail()), s.Stop())
}

// command sends one inline command and returns the first line of the answer.
func (s *Server) command(ctx context.Context, line string) (string, error) {
	d := net.Dialer{Timeout: 200 * time.Millisecond}
	conn, err := d.DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, line+"\r\n"); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

func (s *Server) tail() string {
	b, err := os.ReadFile(s.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// Kill ends the server with SIGKILL.
func (s *Server) Kill() error {
	err := s.cmd.Process.Kill()
	<-s.done
	return err
}

// Restart starts the server again on the same port, after Kill or Stop.
func (s *Server) Restart(ctx context.Context) error { return s.start(ctx) }

// Pause stops the server from running without ending it; Resume undoes it.
func (s *Server) Pause() error { return s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// Stop ends the server.
func (s *Server) Stop() error {
	if s.cmd == nil || s.cmd.Process == nil {
		return nil
	}
	select {
	case <-s.done:
		return s.log.Close()
	default:
	}
	// SIGKILL ends a paused server, too, and there is nothing to save.
	return errors.Join(s.Kill(), s.log.Close())
}

// Cluster is a Redis Cluster of masters without replicas.
type Cluster struct{ Nodes []*Server }

// URL is how to connect to the cluster.
func (c *Cluster) URL() string {
	addrs := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addrs[i] = n.Addr
	}
	return "redis+cluster://" + strings.Join(addrs, ",")
}

// StartCluster starts a cluster of masters for a test and its subtests, and
// waits until every node serves all slots.
func StartCluster(t testing.TB, masters int) *Cluster {
	t.Helper()
	c := &Cluster{}
	args := []string{"--cluster", "create"}
	for range masters {
		// The cluster bus listens 10,000 above the port, which must fit.
		s := startClusterNode(t)
		c.Nodes = append(c.Nodes, s)
		args = append(args, s.Addr)
	}
	args = append(args, "--cluster-replicas", "0", "--cluster-yes")
	out, err := exec.CommandContext(t.Context(), "redis-cli", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
	deadline := time.Now().Add(startTimeout)
	for _, n := range c.Nodes {
		for {
			info, err := n.command(t.Context(), "CLUSTER INFO")
			if err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(masters)) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("node %s did not join: %s %v", n.Addr, info, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return c
}

func startClusterNode(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	for range 50 {
		addr, err := freeAddr(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(addr)
		n, err := strconv.Atoi(port)
		if err != nil || n > 55_000 {
			continue
		}
		s := &Server{Addr: addr, dir: dir, args: []string{"--cluster-enabled", "yes", "--cluster-node-timeout", "2000"}}
		if err := s.start(t.Context()); err != nil {
			continue
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	t.Fatal("no port whose cluster bus port is free")
	return nil
}
