// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// What is not in golang.org/x/sys (linux/netfilter/nf_tables.h).
const (
	nftaTableName          = 1  // NFTA_TABLE_NAME
	nftaTableFlags         = 2  // NFTA_TABLE_FLAGS
	nftTableDormant        = 1  // NFT_TABLE_F_DORMANT
	nftaSetElemKeyEnd      = 10 // NFTA_SET_ELEM_KEY_END
	nftaSetElemExpressions = 11 // NFTA_SET_ELEM_EXPRESSIONS
	udataRuleComment       = 0  // NFTNL_UDATA_RULE_COMMENT (libnftnl/udata.h)
)

// nftTable is a table of nftables, of the whole machine or of one kind of packets.
type nftTable struct {
	family uint8
	name   string
}

func guardTable() nftTable     { return nftTable{unix.NFPROTO_INET, plan.GuardTable} }
func neighbourTable() nftTable { return nftTable{unix.NFPROTO_NETDEV, plan.NeighbourTable} }

// nftRule is a rule, as far as it is looked at.
type nftRule struct {
	chain, comment string
	counts         bool    // it has a counter expression
	counted        Counter // by it
}

// nftSet is a set or a map. Shape are those of its flags that say what its
// elements are.
type nftSet struct {
	name  string
	shape uint32
}

// setShape are the flags that decide how a packet meets the elements of a set.
const setShape = unix.NFT_SET_ANONYMOUS | unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | unix.NFT_SET_TIMEOUT | unix.NFT_SET_OBJECT

// nftList lists what one table holds. The kernel is asked over netlink: the
// program nft reads all tables to list one, and writes it as JSON.
type nftList struct {
	*lister
	table nftTable
}

// dormant tells whether the table is there but switched off: packets meet nothing
// of it.
func (l nftList) dormant() (is bool, err error) {
	err = l.ask(unix.NFT_MSG_GETTABLE, func(body []byte) error {
		if flags := find(body, nftaTableFlags); text(find(body, nftaTableName)) == l.table.name && len(flags) == 4 {
			is = binary.BigEndian.Uint32(flags)&nftTableDormant != 0
		}
		return nil
	})
	return is, err
}

// rules returns the rules of a table, none if there is no table.
func (l nftList) rules() ([]nftRule, error) {
	var out []nftRule
	err := l.ask(unix.NFT_MSG_GETRULE, func(body []byte) error {
		out = append(out, parseRule(body))
		return nil
	}, nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(l.table.name)))
	return out, err
}

// sets returns the sets and maps, without those that are written within rules.
// exists is false if there is no table.
func (l nftList) sets() (out []nftSet, exists bool, err error) {
	err = l.ask(unix.NFT_MSG_GETSET, func(body []byte) error {
		if s := parseSet(body); s.shape&unix.NFT_SET_ANONYMOUS == 0 {
			out = append(out, s)
		}
		return nil
	}, nl.NewRtAttr(unix.NFTA_SET_TABLE, nl.ZeroTerminated(l.table.name)))
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	return out, true, err
}

// elements hands over the elements of a set: the attributes of each, which last
// until the call returns.
func (l nftList) elements(set string, each func(element []byte) error) error {
	return l.ask(unix.NFT_MSG_GETSETELEM, func(body []byte) error { return eachElement(body, each) },
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_TABLE, nl.ZeroTerminated(l.table.name)),
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET, nl.ZeroTerminated(set)))
}

// ask sends a request and hands over the attributes of each message of the answer.
func (l nftList) ask(kind int, each func(body []byte) error, about ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: l.table.family, Version: nl.NFNETLINK_V0})
	for _, a := range about {
		req.AddData(a)
	}
	return l.list(req, func(body []byte) error {
		if len(body) < nl.SizeofNfgenmsg {
			return errMalformed
		}
		return each(body[nl.SizeofNfgenmsg:])
	})
}

func parseRule(body []byte) (r nftRule) {
	for list := (attributes{body}); ; {
		kind, value, more := list.next()
		switch {
		case !more:
			return r
		case kind == unix.NFTA_RULE_CHAIN:
			r.chain = text(value)
		case kind == unix.NFTA_RULE_USERDATA:
			r.comment = ruleComment(value)
		case kind == unix.NFTA_RULE_EXPRESSIONS:
			r.counted, r.counts = ruleCounter(value)
		}
	}
}

// ruleComment finds the comment in what nft keeps with a rule: fields of one byte
// each for kind and length, and so many bytes.
func ruleComment(fields []byte) string {
	for len(fields) >= 2 {
		kind, size := fields[0], int(fields[1])
		if fields = fields[2:]; size > len(fields) {
			return ""
		}
		if kind == udataRuleComment {
			return text(fields[:size])
		}
		fields = fields[size:]
	}
	return ""
}

// ruleCounter sums the counters of a rule. is says that it has one.
func ruleCounter(expressions []byte) (sum Counter, is bool) {
	for list := (attributes{expressions}); ; {
		_, expression, more := list.next()
		if !more {
			return sum, is
		}
		if string(find(expression, unix.NFTA_EXPR_NAME)) != "counter\x00" {
			continue
		}
		data := find(expression, unix.NFTA_EXPR_DATA)
		sum = sum.plus(Counter{Packets: count(find(data, unix.NFTA_COUNTER_PACKETS)), Bytes: count(find(data, unix.NFTA_COUNTER_BYTES))})
		is = true
	}
}

// count reads a counter, 0 if it is none.
func count(value []byte) uint64 {
	if len(value) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(value)
}

func parseSet(body []byte) nftSet {
	s := nftSet{name: text(find(body, unix.NFTA_SET_NAME))}
	if flags := find(body, unix.NFTA_SET_FLAGS); len(flags) == 4 {
		s.shape = binary.BigEndian.Uint32(flags) & setShape
	}
	return s
}

func eachElement(body []byte, each func(element []byte) error) error {
	all := attributes{find(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS)}
	for {
		_, element, more := all.next()
		if !more && all.malformed() {
			return errMalformed
		}
		if !more {
			return nil
		}
		if err := each(element); err != nil {
			return err
		}
	}
}

// text returns a text of the kernel, which a zero ends.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// atOnce reads from nftables what belongs together: again, if a transaction came
// between, but not for ever.
func atOnce[T any](ctx context.Context, k *Kernel, read func() (T, error)) (out T, err error) {
	const attempts = 10
	for i := 1; ; i++ {
		before, unknown := k.rulesGeneration()
		out, err = read()
		after, unknown2 := k.rulesGeneration()
		changed := errors.Is(err, netlink.ErrDumpInterrupted) || unknown == nil && unknown2 == nil && before != after
		if !changed || i == attempts || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("read nftables: %w", err)
	}
	return out, err
}
