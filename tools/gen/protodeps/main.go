// Protodeps writes the .proto files that Stoker's protos import into a folder,
// printed from the descriptors that the pinned Go modules carry, so that
// generating code needs no registry of protos.
package main

import (
	"fmt"
	"os"
	"strings"

	_ "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	_ "google.golang.org/genproto/googleapis/api/annotations"
	_ "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var wanted = []string{"google/api/annotations.proto", "google/api/http.proto", "google/rpc/status.proto", "buf/validate/"}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	var files []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		for _, prefix := range wanted {
			if strings.HasPrefix(fd.Path(), prefix) {
				files = append(files, fd)
				break
			}
		}
		return true
	})
	printer := protoprint.Printer{}
	return printer.PrintProtosToFileSystem(files, dir)
}
