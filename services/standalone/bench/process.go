package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// stopTimeout is how long a child may take to end once it is told to.
const stopTimeout = 10 * time.Second

// process is a child under measurement.
type process struct {
	hello
	kind string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	log  tailBuffer
	done chan struct{}
}

// tailBuffer keeps the end of what a child complains about.
type tailBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf.Len() > 64<<10 {
		b.buf.Next(32 << 10)
	}
	return b.buf.Write(p)
}

func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.buf.String()
	return s[max(0, len(s)-2000):]
}

// spawn starts a child and waits for its first line.
func spawn(ctx context.Context, program, env []string, kind string, args ...string) (*process, error) {
	all := append(append(append([]string{}, program[1:]...), kind), args...)
	p := &process{kind: kind, cmd: exec.Command(program[0], all...), done: make(chan struct{})} //nolint:noctx,gosec // it outlives the start, and is this program
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.log
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// A pipe of our own: that of StdoutPipe is closed by Wait under the reader.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout = w
	p.out = json.NewDecoder(bufio.NewReader(r))
	err = p.cmd.Start()
	_ = w.Close()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	// A reader must not wait for a child that says nothing.
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := p.out.Decode(&p.hello); err != nil {
		stopped := p.stop() // first: it may still have something to say
		return nil, errors.Join(fmt.Errorf("child %s does not start: %w: %s", kind, err, p.log.String()), stopped)
	}
	return p, nil
}

// ask asks a question.
func (p *process) ask(what string) (usage, error) {
	var u usage
	if _, err := io.WriteString(p.in, what+"\n"); err != nil {
		return u, fmt.Errorf("child %s: %w: %s", p.kind, err, p.log.String())
	}
	if err := p.out.Decode(&u); err != nil {
		return u, fmt.Errorf("child %s: %w: %s", p.kind, err, p.log.String())
	}
	return u, nil
}

// ended says why a child that should be there is not.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("child %s has ended: %s", p.kind, p.log.String())
	default:
		return nil
	}
}

// stop ends the child: by closing its input, and by force where that does not
// do.
func (p *process) stop() error {
	_ = p.in.Close()
	t := time.NewTimer(stopTimeout)
	defer t.Stop()
	select {
	case <-p.done:
		return nil
	case <-t.C:
	}
	err := p.cmd.Process.Kill()
	<-p.done
	return errors.Join(fmt.Errorf("child %s did not end within %v", p.kind, stopTimeout), err)
}
