package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A file begins with a header, followed by batches:
//
//	header: magic (8) | first sequence number (8) | CRC-32C of both (4)
//	batch:  magic (4) | length (4) | CRC-32C (4) | first sequence number (8) | payload
//	payload: records, each as uvarint length and bytes
//
// A batch's checksum covers its length, number and payload. A snapshot ends
// with a batch without payload whose number is the count of its records.
const (
	headerSize      = 20
	batchHeaderSize = 20
	segmentMagic    = "STOKWAL1"
	snapshotMagic   = "STOKSNP1"
	batchMagic      = 0x42_54_53_53 // "SSTB"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errTorn   = errors.New("unfinished batch")
	errHeader = errors.New("damaged header")
)

func segmentName(first uint64) string  { return fmt.Sprintf("seg-%020d", first) }
func snapshotName(first uint64) string { return fmt.Sprintf("snap-%020d", first) }

func encodeHeader(magic string, first uint64) []byte {
	b := append(make([]byte, 0, headerSize), magic...)
	b = binary.LittleEndian.AppendUint64(b, first)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeHeader(magic string, b []byte) (first uint64, err error) {
	if len(b) < headerSize || string(b[:8]) != magic ||
		crc32.Checksum(b[:16], castagnoli) != binary.LittleEndian.Uint32(b[16:]) {
		return 0, errHeader
	}
	return binary.LittleEndian.Uint64(b[8:]), nil
}

func appendRecord(b, record []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(record))), record...)
}

func encodeBatch(first uint64, payload []byte) []byte {
	b := make([]byte, batchHeaderSize, batchHeaderSize+len(payload))
	binary.LittleEndian.PutUint32(b, batchMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(b[12:], first)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[8:], batchSum(b))
	return b
}

func batchSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[4:8], castagnoli), castagnoli, b[12:])
}

// decodeBatch reads the batch at the beginning of b.
func decodeBatch(b []byte) (first uint64, payload []byte, size int, err error) {
	if len(b) < batchHeaderSize || binary.LittleEndian.Uint32(b) != batchMagic {
		return 0, nil, 0, errTorn
	}
	n := int(binary.LittleEndian.Uint32(b[4:]))
	size = batchHeaderSize + n
	if n > len(b)-batchHeaderSize || batchSum(b[:size]) != binary.LittleEndian.Uint32(b[8:]) {
		return 0, nil, 0, errTorn
	}
	return binary.LittleEndian.Uint64(b[12:]), b[batchHeaderSize:size], size, nil
}

// eachRecord calls fn for the records of a payload and counts them.
func eachRecord(payload []byte, fn func(record []byte) error) (uint64, error) {
	var count uint64
	for len(payload) > 0 {
		n, used := binary.Uvarint(payload)
		if used <= 0 || n > uint64(len(payload)-used) {
			return count, errors.New("record runs beyond its batch")
		}
		record := payload[used : used+int(n)]
		payload = payload[used+int(n):]
		count++
		if err := fn(record); err != nil {
			return count, err
		}
	}
	return count, nil
}

// laterBatch says whether a sound batch follows somewhere in b. A batch is
// only written once the one before it is durable, so one that follows damage
// proves that the damaged part had been acknowledged.
func laterBatch(b []byte) bool {
	for i := 0; i+batchHeaderSize <= len(b); i++ {
		if binary.LittleEndian.Uint32(b[i:]) != batchMagic {
			continue
		}
		if _, _, _, err := decodeBatch(b[i:]); err == nil {
			return true
		}
	}
	return false
}
