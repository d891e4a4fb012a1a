package tracker

// maxLinks is how many causes of one report are kept for its span.
const maxLinks = 4

// Link is the place in a trace where an event came from.
type Link struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

func (l Link) valid() bool { return l.TraceID != [16]byte{} && l.SpanID != [8]byte{} }

// parseLink reads a W3C traceparent; the zero Link where it is none.
func parseLink(s string) Link {
	var l Link
	if len(s) != 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return l
	}
	var flags [1]byte
	if !unhex(l.TraceID[:], s[3:35]) || !unhex(l.SpanID[:], s[36:52]) || !unhex(flags[:], s[53:55]) {
		return Link{}
	}
	l.Flags = flags[0]
	return l
}

func unhex(dst []byte, src string) bool {
	for i := range dst {
		hi, lo := nibble(src[2*i]), nibble(src[2*i+1])
		if hi > 15 || lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	default:
		return 255
	}
}
