package storagetest

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Fault is how a Faulty store fails.
type Fault int32

// Faults.
const (
	// Works: it does not.
	Works Fault = iota
	// Refuses: nothing reaches the store.
	Refuses
	// Loses: calls reach the store, but their answers are lost.
	Loses
)

// ErrDown is what a Faulty store fails with.
var ErrDown = fmt.Errorf("%w: it is down", storage.ErrUnavailable)

// Faulty is a store that can be made to fail. What is not listed here passes
// through.
type Faulty struct {
	storage.Store
	fault atomic.Int32
}

// Set makes it fail in a way.
func (f *Faulty) Set(how Fault) { f.fault.Store(int32(how)) }

func guarded[T any](f *Faulty, call func() (T, error)) (T, error) {
	var none T
	how := Fault(f.fault.Load())
	if how == Refuses {
		return none, ErrDown
	}
	v, err := call()
	if how == Loses {
		return none, ErrDown
	}
	return v, err
}

func guardedErr(f *Faulty, call func() error) error {
	_, err := guarded(f, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// Create may fail.
func (f *Faulty) Create(ctx context.Context, s *sessionv1.Session, key string) (*sessionv1.Session, bool, error) {
	existed := false
	out, err := guarded(f, func() (out *sessionv1.Session, err error) {
		out, existed, err = f.Store.Create(ctx, s, key)
		return out, err
	})
	return out, existed, err
}

// Get may fail.
func (f *Faulty) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	return guarded(f, func() (*sessionv1.Session, error) { return f.Store.Get(ctx, id) })
}

// GetMany may fail as a whole.
func (f *Faulty) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	return guarded(f, func() ([]storage.SessionResult, error) { return f.Store.GetMany(ctx, ids) })
}

// Update may fail.
func (f *Faulty) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	return guarded(f, func() (*sessionv1.Session, error) { return f.Store.Update(ctx, id, u) })
}

// End may fail.
func (f *Faulty) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	return guarded(f, func() (*sessionv1.Session, error) { return f.Store.End(ctx, id, reason) })
}

// Delete may fail.
func (f *Faulty) Delete(ctx context.Context, id string) error {
	return guardedErr(f, func() error { return f.Store.Delete(ctx, id) })
}

// List may fail.
func (f *Faulty) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	return guarded(f, func() (storage.SessionPage, error) { return f.Store.List(ctx, q) })
}

// RevokeUser may fail.
func (f *Faulty) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	return guarded(f, func() (int, error) { return f.Store.RevokeUser(ctx, project, user, except, reason) })
}

// Append may fail.
func (f *Faulty) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	return guarded(f, func() ([]string, error) { return f.Store.Append(ctx, id, events) })
}

// ListEvents may fail.
func (f *Faulty) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	return guarded(f, func() (storage.EventPage, error) { return f.Store.ListEvents(ctx, q) })
}

// Extend may fail as a whole.
func (f *Faulty) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	return guarded(f, func() ([]storage.ExtendResult, error) { return f.Store.Extend(ctx, items) })
}

// GetPolicy may fail.
func (f *Faulty) GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error) {
	return guarded(f, func() (*sessionv1.ProjectPolicy, error) { return f.Store.GetPolicy(ctx, project) })
}

// SetPolicy may fail.
func (f *Faulty) SetPolicy(ctx context.Context, project string, p *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	return guarded(f, func() (*sessionv1.ProjectPolicy, error) { return f.Store.SetPolicy(ctx, project, p) })
}

// DeletePolicy may fail.
func (f *Faulty) DeletePolicy(ctx context.Context, project string) error {
	return guardedErr(f, func() error { return f.Store.DeletePolicy(ctx, project) })
}

// Sweep may fail.
func (f *Faulty) Sweep(ctx context.Context) (storage.SweepResult, error) {
	return guarded(f, func() (storage.SweepResult, error) { return f.Store.Sweep(ctx) })
}

// Groups may fail.
func (f *Faulty) Groups(ctx context.Context) ([]storage.GroupState, error) {
	return guarded(f, func() ([]storage.GroupState, error) { return f.Store.Groups(ctx) })
}

// Replay may fail.
func (f *Faulty) Replay(ctx context.Context, w storage.Write) error {
	return guardedErr(f, func() error { return f.Store.Replay(ctx, w) })
}

// ListPolicies may fail.
func (f *Faulty) ListPolicies(ctx context.Context, limit int, token string) (storage.PolicyPage, error) {
	return guarded(f, func() (storage.PolicyPage, error) { return f.Store.ListPolicies(ctx, limit, token) })
}

// Hold may fail.
func (f *Faulty) Hold(ctx context.Context, holder string, from time.Time) error {
	return guardedErr(f, func() error { return f.Store.Hold(ctx, holder, from) })
}
