// Package e2e drives the built binaries from outside, as users do: real
// processes, real ports, a real Redis. Its tests need `make build` first and
// the build tag e2e.
package e2e
