//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// disk is a directory with little room, until there is more.
type disk struct {
	dir         string
	limit, more func(p *process)
}

const diskRoom = 1 << 20 // bytes

// mount mounts a file system in memory until the test ends, or skips the test
// where that is not allowed.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", options, "stoker-e2e", dir).CombinedOutput(); err != nil {
		t.Skipf("no file system may be mounted here: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	return dir
}

// newTmpfs is a real file system that gets full.
func newTmpfs(t *testing.T) disk {
	t.Helper()
	dir := mount(t, fmt.Sprint("size=", diskRoom))
	return disk{dir, func(*process) {}, func(*process) { run(t, "mount", "-o", fmt.Sprint("remount,size=", 64*diskRoom), dir) }}
}

// newFileLimit bounds the size of the files that the process may write.
func newFileLimit(t *testing.T) disk {
	t.Helper()
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skip("there is no prlimit here")
	}
	set := func(p *process, soft string) {
		t.Helper()
		run(t, "prlimit", "--pid", fmt.Sprint(p.cmd.Process.Pid), "--fsize="+soft+":unlimited")
	}
	return disk{t.TempDir(), func(p *process) { set(p, fmt.Sprint(diskRoom)) }, func(p *process) { set(p, "unlimited") }}
}

// readOnly is a directory in which nothing can be written: for root that takes
// a file system of its own.
func readOnly(t *testing.T) string {
	t.Helper()
	if os.Geteuid() == 0 {
		return mount(t, "ro,size=4096")
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o500))
	t.Cleanup(func() { must(t, os.Chmod(dir, 0o700)) })
	return dir
}
