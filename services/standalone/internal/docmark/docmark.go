// Package docmark writes what a program has found into a document.
package docmark

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Write replaces what stands between "<!-- name: begin -->" and
// "<!-- name: end -->" in the file at path by text. It returns an error, and
// leaves the file as it is, where it has not both marks in this order.
func Write(path, name, text string) error {
	path = filepath.Clean(path)
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+name+": begin -->", "<!-- "+name+": end -->"
	before, rest, ok := strings.Cut(string(raw), begin)
	_, after, ended := strings.Cut(rest, end)
	if !ok || !ended {
		return fmt.Errorf("%s: want the marks %s and %s in it", path, begin, end)
	}
	text = strings.Trim(text, "\n")
	return os.WriteFile(path, []byte(before+begin+"\n\n"+text+"\n\n"+end+after), 0o644) //nolint:gosec // a document is for everybody
}
