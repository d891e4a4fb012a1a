package routes_test

import (
	"slices"
	"testing"

	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway/internal/routes"
)

func TestTable(t *testing.T) {
	table, err := routes.New([]string{"/", "/healthz"}, sessionv1.File_stoker_session_v1_storage_service_proto,
		sessionv1.File_stoker_session_v1_admin_service_proto, activityv1.File_stoker_activity_v1_activity_service_proto)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method, path, template string
		methods                []string
	}{
		{"GET", "/", "/", []string{"GET"}},
		{"GET", "/healthz", "/healthz", []string{"GET"}},
		{"POST", "/v1/sessions", "/v1/sessions", []string{"GET", "POST"}},
		{"POST", "/v1/sessions:batchGet", "/v1/sessions:batchGet", []string{"POST"}},
		{"GET", "/v1/sessions/abc", "/v1/sessions/{id}", []string{"DELETE", "GET", "PATCH"}},
		{"GET", "/v1/sessions/abc/events", "/v1/sessions/{id}/events", []string{"GET", "POST"}},
		{"GET", "/v1/sessions/abc/events:watch", "/v1/sessions/{id}/events:watch", []string{"GET"}},
		{"POST", "/v1/sessions/abc:end", "/v1/sessions/{id}:end", []string{"DELETE", "GET", "PATCH", "POST"}},
		{"GET", "/v1/sessions/abc/activity", "/v1/sessions/{id}/activity", []string{"GET"}},
		{"PUT", "/v1/sessions/abc", "unknown", []string{"DELETE", "GET", "PATCH"}},
		{"GET", "/v1/sessions/abc/", "unknown", nil},
		{"GET", "/v1/sessions/", "/v1/sessions/{id}", []string{"DELETE", "GET", "PATCH"}},
		{"GET", "/v1/sessions/events", "/v1/sessions/{id}", []string{"DELETE", "GET", "PATCH"}},
		{"GET", "/v1/sessions//events", "/v1/sessions/{id}/events", []string{"GET", "POST"}},
		{"GET", "/v1/sessions/a/b/events", "unknown", nil},
		{"GET", "/secret", "unknown", nil},
		{"GET", "", "unknown", nil},
	} {
		if got := table.Template(tt.method, tt.path); got != tt.template {
			t.Errorf("%s %s: got template %q, want %q", tt.method, tt.path, got, tt.template)
		}
		if got := table.Methods(tt.path); !slices.Equal(got, tt.methods) {
			t.Errorf("%s: got methods %v, want %v", tt.path, got, tt.methods)
		}
	}
	for _, r := range table.All() {
		if r.RPC == "" && r.Template != "/" && r.Template != "/healthz" {
			t.Errorf("%s has no RPC", r.Template)
		}
	}
}

func TestRouteThatCannotBeMatchedIsRefused(t *testing.T) {
	for _, path := range []string{"/a/{b}/{c}", "/a/{b", "/a/{b=**}"} {
		if _, err := routes.New([]string{path}); err == nil {
			t.Errorf("%s was taken", path)
		}
	}
}
