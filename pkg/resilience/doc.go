// Package resilience keeps a service answering while what it calls does not:
// circuit breakers for each class of operation and node (Nygard, Release It!,
// 2nd edition, chapter 5), a retry budget, and limits that adapt to how fast
// the other side answers. The policies are failsafe-go's; what is here makes
// them cheap enough for every call, and keeps one caller's cancellation from
// being a verdict on the other side.
//
//	closed --failures in a row, or a failure rate--> open
//	open --delay has passed, and a call comes--> half-open: a few probes
//	half-open --successes--> closed,  --one failure--> open
package resilience
