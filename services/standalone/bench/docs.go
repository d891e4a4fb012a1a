package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Marks in a Markdown file: what stands between them is written by the program.
const (
	docsBegin = "<!-- bench: begin -->"
	docsEnd   = "<!-- bench: end -->"
)

// writeBetween puts text between the marks of a file.
func writeBetween(path, text string) error {
	path = filepath.Clean(path)
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(raw), docsBegin)
	_, after, ended := strings.Cut(rest, docsEnd)
	if !ok || !ended {
		return fmt.Errorf("%s: want the marks %s and %s in it", path, docsBegin, docsEnd)
	}
	return os.WriteFile(path, []byte(before+docsBegin+"\n\n"+text+"\n"+docsEnd+after), 0o644) //nolint:gosec // a document is for everybody
}
