// Package openapi serves the description of the REST surface, generated from
// the protos.
package openapi

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
)

//go:embed stoker.swagger.json
var generated []byte

// Document returns the OpenAPI 2.0 document of a version of Stoker.
func Document(version string) ([]byte, error) {
	var doc map[string]any
	if err := json.Unmarshal(generated, &doc); err != nil {
		return nil, fmt.Errorf("generated OpenAPI document: %w", err)
	}
	doc["info"] = map[string]any{
		"title":       "Stoker",
		"description": "A session store that keeps a session alive exactly as long as somebody is really using it. Errors are google.rpc.Status with details.",
		"version":     version,
		"license":     map[string]any{"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
	}
	return json.MarshalIndent(doc, "", "  ")
}

// Handler serves the document.
func Handler(version string) (http.Handler, error) {
	doc, err := Document(version)
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(doc)
	}), nil
}
