package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	// markFileName is the file of the marks in the data directory.
	markFileName = "redis-marks.json"
	// saveEvery is how often the marks are saved: one that is older finds a loss, too,
	// unless the loss was shorter.
	saveEvery = 2 * time.Second
)

// markFile keeps a replica's name and marks across restarts, so that it also detects
// that data has gone back while it did not run. Without a path it keeps nothing.
type markFile struct {
	path   string
	saved  time.Time
	failed bool // the last write failed, which was logged
}

// markRecord is what the file holds.
type markRecord struct {
	Replica string `json:"replica"`
	Epoch   string `json:"epoch"`
	// Marks are the marks that were acknowledged, by the shard that has them.
	Marks map[int]int64 `json:"marks"`
}

// load gives a new process its name, and the marks of the one before it.
func (p *past) load(dir string) error {
	p.replica = rand.Text()
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	p.file.path = filepath.Join(dir, markFileName)
	raw, err := os.ReadFile(p.file.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var rec markRecord
	if err == nil {
		err = json.Unmarshal(raw, &rec)
	}
	if err == nil && rec.Replica == "" {
		err = errors.New("no replica")
	}
	if err != nil {
		// It guards no data by itself: to go without it is better than not to start.
		p.s.opts.Log.Warn("marks of the process before cannot be read: a loss while it did not run goes unnoticed", slog.Any("error", err))
		return nil
	}
	p.replica = rec.Replica
	if rec.Epoch != "" {
		p.s.epoch.Store(&rec.Epoch)
	}
	for _, tl := range p.distinct() {
		tl.acked = rec.Marks[tl.sh.n]
	}
	return nil
}

// save writes the marks, unless that was done not long ago. The caller holds p.mu.
func (f *markFile) save(ctx context.Context, p *past, now time.Time, force bool) {
	if since := now.Sub(f.saved); f.path == "" || !force && since >= 0 && since < saveEvery {
		return
	}
	f.saved = now
	rec := markRecord{Replica: p.replica, Marks: map[int]int64{}}
	if epoch := p.s.epoch.Load(); epoch != nil {
		rec.Epoch = *epoch
	}
	for _, tl := range p.distinct() {
		if tl.acked > 0 {
			rec.Marks[tl.sh.n] = tl.acked
		}
	}
	raw, err := json.Marshal(rec)
	if err == nil {
		err = storage.ReplaceFile(f.path, raw)
	}
	if err != nil && !f.failed {
		p.s.opts.Log.WarnContext(ctx, "marks cannot be saved: a loss while this process does not run may go unnoticed", slog.Any("error", err))
	}
	f.failed = err != nil
}

// close saves the marks for the next process.
func (p *past) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.file.save(context.Background(), p, p.s.Now(), true)
}
