package storage

import (
	"fmt"
	"maps"
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"
)

// Update is a change of the client-owned part of a session.
type Update struct {
	// WriteID names the call, so that it can come again after a lost answer;
	// empty for none. It is at most 64 bytes of printable ASCII without spaces.
	WriteID string
	// IfRevision is the expected revision, 0 for any.
	IfRevision int64
	// ReplaceLabels drops all labels before SetLabels are applied.
	ReplaceLabels bool
	SetLabels     map[string]string
	// DeleteLabels are removed; a label that is not there is no error.
	DeleteLabels []string
	// MaxLabels bounds the labels after the change; 0 for no bound.
	MaxLabels int
	// SetData replaces data by Data; a nil Data removes it.
	SetData bool
	Data    *structpb.Value
}

// Labels returns a session's labels after the update, or an InvalidError when
// there would be more than MaxLabels.
func (u Update) Labels(old map[string]string) (map[string]string, error) {
	if !u.ReplaceLabels && len(u.SetLabels) == 0 && len(u.DeleteLabels) == 0 {
		return old, nil
	}
	out := map[string]string{}
	if !u.ReplaceLabels {
		maps.Copy(out, old)
	}
	maps.Copy(out, u.SetLabels)
	for _, k := range u.DeleteLabels {
		delete(out, k)
	}
	if u.MaxLabels > 0 && len(out) > u.MaxLabels {
		return nil, &InvalidError{Field: "session.labels", Value: strconv.Itoa(len(out)), Want: fmt.Sprintf("at most %d labels", u.MaxLabels)}
	}
	return out, nil
}
