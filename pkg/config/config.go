// Package config fills flags from the command line, the environment and a YAML
// file, in this order of precedence. The flag set is the single source of
// names, types, defaults and help: --redis-url is STOKER_REDIS_URL and the key
// redis-url.
package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

const configFlag = "config"

// AddFlag registers --config.
func AddFlag(fs *pflag.FlagSet) {
	fs.String(configFlag, "", "YAML `file` whose keys are the names of flags")
}

// Load sets every flag that was not given on the command line from the
// environment, else from the file that --config names. It returns all problems
// joined: an unreadable file, unknown keys, values a flag refuses.
func Load(fs *pflag.FlagSet) error {
	k, path, err := readFile(fs)
	if err != nil {
		return err
	}
	var errs []error
	for _, key := range k.Keys() {
		if f := fs.Lookup(key); f == nil || key == configFlag {
			errs = append(errs, fmt.Errorf("%s: unknown key %q, expected the name of a flag", path, key))
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == configFlag || f.Name == "help" || f.Name == "version" {
			return
		}
		env := EnvName(f.Name)
		if v, ok := os.LookupEnv(env); ok {
			errs = append(errs, set(fs, f.Name, v, "environment "+env))
			return
		}
		if k.Exists(f.Name) {
			errs = append(errs, set(fs, f.Name, text(k, f.Name), path+" key "+f.Name))
		}
	})
	return errors.Join(errs...)
}

// EnvName is the environment variable of a flag.
func EnvName(flag string) string {
	return "STOKER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func readFile(fs *pflag.FlagSet) (*koanf.Koanf, string, error) {
	// A delimiter that no key can hold: flag names are flat.
	k := koanf.New("\x00")
	path, err := fs.GetString(configFlag)
	if err != nil {
		path = ""
	}
	if path == "" {
		path = os.Getenv(EnvName(configFlag))
	}
	if path == "" {
		return k, "", nil
	}
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		return nil, "", fmt.Errorf("--%s: %w", configFlag, err)
	}
	return k, path, nil
}

// text spells a YAML value as the flag would be given it.
func text(k *koanf.Koanf, key string) string {
	if list, ok := k.Get(key).([]any); ok {
		return strings.Join(slices.Collect(func(yield func(string) bool) {
			for _, v := range list {
				if !yield(fmt.Sprint(v)) {
					return
				}
			}
		}), ",")
	}
	return fmt.Sprint(k.Get(key))
}

func set(fs *pflag.FlagSet, name, value, source string) error {
	if err := fs.Set(name, value); err != nil {
		return fmt.Errorf("--%s from %s: %w", name, source, err)
	}
	return nil
}
