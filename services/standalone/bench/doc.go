// Package bench measures Stoker against what gRPC and Redis themselves allow:
// baselines and Stoker take turns in the same run, each server is a process of
// its own, and what is reported is the median of several rounds.
package bench
