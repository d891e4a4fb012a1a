package config

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

type settings struct {
	Name  string
	Every time.Duration
	List  []string
	On    bool
}

func (s *settings) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&s.Name, "the-name", "default", "a name")
	fs.DurationVar(&s.Every, "every", time.Second, "an interval")
	fs.StringSliceVar(&s.List, "list", nil, "a list")
	fs.BoolVar(&s.On, "on", false, "a switch")
}

func (s *settings) Validate() error {
	if s.Name == "invalid" {
		return errors.New("--the-name: got \"invalid\"")
	}
	return nil
}

func yamlFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stoker.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrecedence(t *testing.T) {
	path := yamlFile(t, "the-name: file\nevery: 3s\nlist: [a, b]\non: true\n")
	t.Setenv("STOKER_THE_NAME", "environment")
	t.Setenv("STOKER_EVERY", "2s")
	var got settings
	cmd := Command("x", "", "1", &got, func(context.Context) error { return nil })
	cmd.SetArgs([]string{"--the-name", "flag", "--config", path})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if got.Name != "flag" || got.Every != 2*time.Second || strings.Join(got.List, " ") != "a b" || !got.On {
		t.Errorf("got %+v", got)
	}
}

func TestProblemsNameTheirSource(t *testing.T) {
	path := yamlFile(t, "evry: 3s\nlist: [a]\non: maybe\n")
	t.Setenv("STOKER_EVERY", "soon")
	cmd := Command("x", "", "1", &settings{}, func(context.Context) error { return nil })
	cmd.SetArgs([]string{"config", "check", "--config", path})
	cmd.SetErr(&bytes.Buffer{})
	err := cmd.Execute()
	for _, want := range []string{`unknown key "evry"`, "environment STOKER_EVERY", `"soon"`, "key on", `"maybe"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %s in it", err, want)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	for args, want := range map[string]string{"": "", "--the-name=invalid": "--the-name"} {
		ran := false
		cmd := Command("x", "", "1", &settings{}, func(context.Context) error { ran = true; return nil })
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{"config", "check"}, strings.Fields(args)...))
		err := cmd.Execute()
		if ran {
			t.Error("config check ran the service")
		}
		if want == "" && (err != nil || out.String() != "configuration is valid\n") {
			t.Errorf("%q: %v %q", args, err, out.String())
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %s in it", args, err, want)
		}
	}
}

func TestMissingFile(t *testing.T) {
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	AddFlag(fs)
	if err := fs.Parse([]string{"--config", filepath.Join(t.TempDir(), "none.yaml")}); err != nil {
		t.Fatal(err)
	}
	if err := Load(fs); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "--config") {
		t.Errorf("Load returned %v", err)
	}
}
