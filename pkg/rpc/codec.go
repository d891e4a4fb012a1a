package rpc

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// codec is gRPC's codec for protocol buffers, but for messages with generated
// code to write them: that costs neither reflection nor, for maps, memory for
// each key and value.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

// written is a message that vtprotobuf has generated code for.
type written interface {
	SizeVT() int
	MarshalToSizedBufferVT(data []byte) (int, error)
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(written)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	size := m.SizeVT()
	if mem.IsBelowBufferPoolingThreshold(size) {
		data := make([]byte, size)
		return mem.BufferSlice{mem.SliceBuffer(data)}, write(m, data)
	}
	pool := mem.DefaultBufferPool()
	data := pool.Get(size)
	if err := write(m, *data); err != nil {
		pool.Put(data)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(data, pool)}, nil
}

func write(m written, data []byte) error {
	n, err := m.MarshalToSizedBufferVT(data)
	if err == nil && n != len(data) {
		err = fmt.Errorf("%T changed while it was written", m)
	}
	return err
}
