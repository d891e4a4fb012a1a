package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// machine is where it ran.
type machine struct {
	OS     string `json:"os"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	Go     string `json:"go"`
	Redis  string `json:"redis"`
}

// String is a sentence about the machine.
func (m machine) String() string {
	return fmt.Sprintf("Machine: %s, %d cores for everything, %s of memory; %s; %s; Redis %s.", m.CPU, m.Cores, m.Memory, m.OS, m.Go, m.Redis)
}

// describe looks at the machine; what it does not tell is "unknown".
func describe(ctx context.Context, r *redis) (machine, error) {
	info, err := r.admin.Info(ctx, "server").Result()
	if err != nil {
		return machine{}, err
	}
	return machine{
		OS:     runtime.GOOS + "/" + runtime.GOARCH + " " + first(read("/proc/sys/kernel/osrelease"), ""),
		CPU:    first(read("/proc/cpuinfo"), "model name"),
		Cores:  runtime.NumCPU(),
		Memory: first(read("/proc/meminfo"), "MemTotal"),
		Go:     runtime.Version(),
		Redis:  first(info, "redis_version"),
	}, nil
}

// availableKiB is the memory that can be had; 0 where the system does not tell.
func availableKiB() int {
	n, err := strconv.Atoi(strings.TrimSuffix(first(read("/proc/meminfo"), "MemAvailable"), " kB"))
	if err != nil {
		return 0
	}
	return n
}

func read(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "" // not on this system
	}
	return string(raw)
}

// first is the value of the first line "name: value", or the first line where
// there is no name.
func first(text, name string) string {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if name == "" {
			return lines.Text()
		}
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
