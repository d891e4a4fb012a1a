// Package redisproc starts private Redis servers: real processes on free ports
// of the loopback address, each with a directory of its own.
package redisproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// serverVariable names the environment variable with the server to run instead of
// the redis-server in PATH: another version of Redis, or Valkey.
const serverVariable = "STOKER_REDIS_SERVER"

// startTimeout bounds how long a server may take to answer, which it does when
// it has loaded what it keeps.
const startTimeout = 30 * time.Second

// Server is a running redis-server.
type Server struct {
	// Addr is host:port.
	Addr string

	dir string
	// config is the file of a Sentinel, which keeps its state there; empty for a
	// server that stores data.
	config string
	args   []string
	log    *os.File
	cmd    *exec.Cmd
	done   chan struct{}
}

// URL is how to connect to the server.
func (s *Server) URL() string { return "redis://" + s.Addr + "/0" }

// Launch starts a server in dir with further arguments. The caller must Stop
// it.
func Launch(ctx context.Context, dir string, args ...string) (*Server, error) {
	if _, err := findServer(); err != nil {
		return nil, err
	}
	var lastErr error
	for range 5 { // somebody else may take the free port first
		addr, err := FreeAddr(ctx)
		if err != nil {
			return nil, err
		}
		var s *Server
		if s, lastErr = LaunchAt(ctx, addr, dir, args...); lastErr == nil {
			return s, nil
		}
	}
	return nil, lastErr
}

// LaunchAt is Launch on a given address, host:port.
func LaunchAt(ctx context.Context, addr, dir string, args ...string) (*Server, error) {
	s := &Server{Addr: addr, dir: dir, args: args}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// LaunchSentinelAt starts a Sentinel on a given address, host:port, with a
// configuration file in dir, which it rewrites. The caller must Stop it.
func LaunchSentinelAt(ctx context.Context, addr, dir, config string) (*Server, error) {
	s := &Server{Addr: addr, dir: dir, config: filepath.Join(dir, "sentinel.conf")}
	if err := os.WriteFile(s.config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Dir is the directory with the server's data and log.
func (s *Server) Dir() string { return s.dir }

// findServer returns the path of the server to run.
func findServer() (string, error) {
	if path := os.Getenv(serverVariable); path != "" {
		path, err := exec.LookPath(path)
		if err != nil {
			return "", fmt.Errorf("%s: %w", serverVariable, err)
		}
		return path, nil
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", fmt.Errorf("redis-server was not found: run `make deps`: %w", err)
	}
	return path, nil
}

// FreeAddr returns a loopback address, host:port, that nothing listens on now.
func FreeAddr(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (s *Server) start(ctx context.Context) error {
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	path, err := findServer()
	if err != nil {
		return err
	}
	if s.log, err = os.OpenFile(filepath.Join(s.dir, "redis-"+port+".log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		return err
	}
	args := append([]string{
		"--port", port, "--bind", host, "--dir", s.dir, "--save", "", "--appendonly", "no", "--daemonize", "no",
	}, s.args...)
	if s.config != "" {
		args = []string{s.config, "--sentinel", "--port", port, "--bind", host, "--dir", s.dir, "--daemonize", "no"}
	}
	s.cmd = exec.Command(path, args...) //nolint:noctx // it outlives the start; Stop ends it
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
		// A server that wants a password serves, too.
		if answer, err := s.Ask(ctx, "PING"); err == nil && (strings.HasPrefix(answer, "+PONG") || strings.HasPrefix(answer, "-NOAUTH")) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.Join(fmt.Errorf("redis-server did not answer within %s: %s", startTimeout, s.tail()), s.Stop())
}

// Ask sends one inline command and returns the first line of the answer.
func (s *Server) Ask(ctx context.Context, line string) (string, error) {
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
	if s.cmd == nil {
		return os.ErrProcessDone
	}
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

// Stop ends the server; again, it does nothing.
func (s *Server) Stop() error {
	if s.cmd == nil || s.cmd.Process == nil {
		return nil
	}
	var err error
	select {
	case <-s.done:
	default:
		err = s.Kill() // a paused server, too, and there is nothing to save
	}
	s.cmd = nil
	return errors.Join(err, s.log.Close())
}
