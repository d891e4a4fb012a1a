package fallback

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// The file begins with a line "stoker-policies 1 <time> <whole> <CRC-32C>", followed
// by the policies as a ListPoliciesResponse. The checksum covers what is before and
// after it. The file is replaced as a whole.

// keptPolicies are policies as they are in the file.
type keptPolicies struct {
	policies map[string]*sessionv1.ProjectPolicy
	whole    bool
	seen     int64
}

const policyHeader = "stoker-policies 1 %d %t "

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errPolicyFile = errors.New("damaged, or written by a newer version")

func (k keptPolicies) encode() ([]byte, error) {
	list := &sessionv1.ListPoliciesResponse{}
	for _, p := range k.policies {
		list.Policies = append(list.Policies, p)
	}
	slices.SortFunc(list.GetPolicies(), func(a, b *sessionv1.ProjectPolicy) int { return strings.Compare(a.GetProject(), b.GetProject()) })
	body, err := proto.Marshal(list)
	if err != nil {
		return nil, err
	}
	head := fmt.Sprintf(policyHeader, k.seen, k.whole)
	return fmt.Appendf(nil, "%s%08x\n%s", head, policySum(head, body), body), nil
}

func policySum(head string, body []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(head), castagnoli), castagnoli, body)
}

func decodePolicies(b []byte) (keptPolicies, error) {
	line, body, found := bytes.Cut(b, []byte("\n"))
	k, sum := keptPolicies{policies: map[string]*sessionv1.ProjectPolicy{}}, uint32(0)
	if !found {
		return k, errPolicyFile
	}
	if _, err := fmt.Sscanf(string(line), policyHeader+"%08x", &k.seen, &k.whole, &sum); err != nil {
		return k, errPolicyFile
	}
	if head := fmt.Sprintf(policyHeader, k.seen, k.whole); sum != policySum(head, body) || len(line) != len(head)+8 {
		return k, errPolicyFile
	}
	list := &sessionv1.ListPoliciesResponse{}
	if err := proto.Unmarshal(body, list); err != nil {
		return k, errPolicyFile
	}
	for _, p := range list.GetPolicies() {
		k.policies[p.GetProject()] = p
	}
	return k, nil
}

func readPolicies(path string) (keptPolicies, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return keptPolicies{}, err
	}
	return decodePolicies(b)
}

// writePolicies replaces the file; after a crash it is the old or the new one.
func writePolicies(path string, k keptPolicies) error {
	b, err := k.encode()
	if err != nil {
		return err
	}
	return storage.ReplaceFile(path, b)
}
