// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// attribute writes an attribute of netlink(7).
func attribute(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(len(value)+unix.SizeofNlAttr))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, aligned(len(b))-len(b))...)
}

// keyed is the element of a set with a key, and what else it has.
func keyed(key []byte, more ...[]byte) []byte {
	nested := attribute(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, attribute(unix.NFTA_DATA_VALUE, key...)...)
	return slices.Concat(append([][]byte{nested}, more...)...)
}

func ownerKey() []byte {
	key := append([]byte("eg001"), make([]byte, unix.IFNAMSIZ-5)...)
	return append(binary.NativeEndian.AppendUint32(key, 0x100000), 192, 0, 2, 1)
}

// TestOddElements: an element that is not what a plan writes is never taken for one,
// also where its key is right. The program nft adds few of them.
func TestOddElements(t *testing.T) {
	owners, err := parseLayout(plan.GuardSetTypes()["owners4"])
	if err != nil {
		t.Fatal(err)
	}
	badName := ownerKey()
	badName[9] = 'x'
	for name, test := range map[string]struct {
		element []byte
		plain   bool
	}{
		"as plans write it":            {keyed(ownerKey()), true},
		"with a comment":               {keyed(ownerKey(), attribute(unix.NFTA_SET_ELEM_USERDATA, 0, 2, 'x', 0)), true},
		"with a limit":                 {keyed(ownerKey(), attribute(unix.NFTA_SET_ELEM_EXPR, 1)), false},
		"with two expressions":         {keyed(ownerKey(), attribute(nftaSetElemExpressions, 1)), false},
		"for a while":                  {keyed(ownerKey(), attribute(unix.NFTA_SET_ELEM_TIMEOUT, 0, 0, 0, 0, 0, 0, 0, 9)), false},
		"a range":                      {keyed(ownerKey(), attribute(nftaSetElemKeyEnd, ownerKey()...)), false},
		"the end of one":               {keyed(ownerKey(), attribute(unix.NFTA_SET_ELEM_FLAGS, 0, 0, 0, 1)), false},
		"for all keys":                 {attribute(unix.NFTA_SET_ELEM_FLAGS, 0, 0, 0, 2), false},
		"with a value":                 {keyed(ownerKey(), attribute(unix.NFTA_SET_ELEM_DATA, attribute(unix.NFTA_DATA_VALUE, 0, 0, 0, 1)...)), false},
		"with a verdict":               {keyed(ownerKey(), attribute(unix.NFTA_SET_ELEM_DATA, attribute(unix.NFTA_DATA_VERDICT, 0, 0, 0, 1)...)), false},
		"short":                        {keyed(ownerKey()[:20]), false},
		"long":                         {keyed(append(ownerKey(), 0, 0, 0, 0)), false},
		"bytes behind the link's name": {keyed(badName), false},
		"cut off":                      {keyed(ownerKey())[:20], false},
		"nothing":                      {nil, false},
	} {
		r := setReader{layout: owners, plain: true}
		if r.take(test.element); r.plain != test.plain {
			t.Errorf("%s: taken for a plain one: %t", name, r.plain)
		}
		if _, there := r.set(0)["eg001 . 0x100000 . 192.0.2.1"]; test.plain && !there {
			t.Errorf("%s: read as %v", name, r.set(0))
		}
	}
}

// TestPrefixes: what the kernel holds of a set of prefixes, in whatever order.
func TestPrefixes(t *testing.T) {
	at := func(a string) interval { return interval{at: netip.MustParseAddr(a)} }
	end := func(a string) interval { return interval{netip.MustParseAddr(a), true} }
	for name, test := range map[string]struct {
		bounds []interval
		want   []string
	}{
		"none":               {nil, nil},
		"only the first end": {[]interval{end("0.0.0.0")}, nil},
		"one":                {[]interval{end("10.132.0.0"), at("10.128.0.0"), end("0.0.0.0")}, []string{"10.128.0.0/14"}},
		"to the next":        {[]interval{at("10.0.0.0"), end("10.1.0.0"), at("10.1.0.0"), end("10.1.0.128")}, []string{"10.0.0.0/16", "10.1.0.0/25"}},
		"to the next, once":  {[]interval{at("10.0.0.0"), at("10.1.0.0"), end("10.1.0.128")}, []string{"10.0.0.0/16", "10.1.0.0/25"}},
		"everything":         {[]interval{at("0.0.0.0")}, []string{"0.0.0.0/0"}},
		"to the last":        {[]interval{at("ff00::"), at("fd00::7"), end("fd00::8")}, []string{"fd00::7/128", "ff00::/8"}},
		"no prefix":          {[]interval{at("10.0.0.5"), end("10.0.0.10")}, []string{"10.0.0.5-10.0.0.9"}},
		"no prefix, aligned": {[]interval{at("10.0.0.0"), end("10.0.0.3")}, []string{"10.0.0.0-10.0.0.2"}},
	} {
		if got := prefixes(test.bounds); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// TestEverySetIsUnderstood: a set that plans declare can be read.
func TestEverySetIsUnderstood(t *testing.T) {
	for name, declaration := range plan.GuardSetTypes() {
		if _, err := parseLayout(declaration); err != nil && !plan.CountedSet(name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
