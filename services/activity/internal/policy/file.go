package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

type ruleFile struct {
	ActivityRules []struct {
		Pattern       string `yaml:"pattern"`
		Kind          string `yaml:"kind"`
		Ignore        bool   `yaml:"ignore"`
		IncludeSystem bool   `yaml:"includeSystem"`
	} `yaml:"activityRules"`
}

// ReadRules reads a rule list from a YAML file of the form
//
//	activityRules:
//	  - {pattern: "input:*", kind: input}
//	  - {pattern: "file:*", ignore: true}
//	  - {pattern: "*", kind: event, includeSystem: true}
func ReadRules(path string) (*Rules, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := ParseRules(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// ParseRules is ReadRules on the content of the file. Unknown keys, an empty
// list and more than one document are errors.
func ParseRules(data []byte) (*Rules, error) {
	var f ruleFile
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one YAML document")
	}
	if len(f.ActivityRules) == 0 {
		return nil, errors.New("activityRules: want at least one rule")
	}
	list := make([]*sessionv1.ActivityRule, 0, len(f.ActivityRules))
	for _, r := range f.ActivityRules {
		list = append(list, &sessionv1.ActivityRule{Pattern: r.Pattern, Kind: r.Kind, Ignore: r.Ignore, IncludeSystem: r.IncludeSystem})
	}
	return Compile(list)
}
