package memory_test

import (
	"strconv"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func BenchmarkGet(b *testing.B) {
	c := storagetest.NewClock()
	s := open(b, options(c, ""))
	x, _, err := s.Create(b.Context(), session(c.Now(), "ann"), "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get(b.Context(), x.GetId()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "durable": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			c := storagetest.NewClock()
			s := open(b, options(c, dir))
			x, _, err := s.Create(b.Context(), session(c.Now(), "ann"), "")
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				e := []*sessionv1.Event{{Id: strconv.Itoa(n), Type: "input:text"}}
				if _, err := s.Append(b.Context(), x.GetId(), e); err != nil {
					b.Fatal(err)
				}
				if n%10_000 == 0 { // trims the feed, which would grow for ever
					if _, err := s.Sweep(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkExtendNotNeeded(b *testing.B) {
	c := storagetest.NewClock()
	s := open(b, options(c, ""))
	x, _, err := s.Create(b.Context(), session(c.Now(), "ann"), "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		at := c.Now().Add(time.Duration(n) * time.Millisecond)
		if _, err := s.Extend(b.Context(), []storage.Activity{{SessionID: x.GetId(), Time: at}}); err != nil {
			b.Fatal(err)
		}
	}
}
