package fallback

// WithStripes returns options under which keys share so many marks of each
// kind.
func WithStripes(o Options, n int) Options {
	o.stripes = n
	return o
}
