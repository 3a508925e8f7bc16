// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// maxElements is how many steps about single elements go to the kernel without
// the program nft: more of them, as at the start, are cheaper with it.
const maxElements = 256

// elementsOnly tells rows that concern single elements of sets, and few of them.
// The program nft takes 5 to 20 ms for each row, with 4,000 tenants, as it reads
// all tables first.
func elementsOnly(steps []plan.Step) bool {
	for _, s := range steps {
		switch s.(type) {
		case plan.AddElement, plan.DelElement, plan.AddNeighbour, plan.DelNeighbour:
		default:
			return false
		}
	}
	return len(steps) <= maxElements
}

// applyElements carries out such a row in one transaction.
func (k *Kernel) applyElements(steps []plan.Step) error {
	return k.withNFT(func(c *nftables.Conn) error {
		for _, s := range steps {
			if err := queueElement(c, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// withNFT sends what queue puts into the connection, in one transaction. After
// a failure the connection may hold answers that nobody waits for, and is
// closed.
func (k *Kernel) withNFT(queue func(*nftables.Conn) error) (err error) {
	if k.nftConn == nil {
		if k.nftConn, err = nftables.New(nftables.AsLasting()); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	if err = queue(k.nftConn); err == nil {
		err = k.nftConn.Flush()
	}
	if err != nil {
		k.closeNFT()
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

func (k *Kernel) closeNFT() {
	if k.nftConn == nil {
		return
	}
	if err := k.nftConn.CloseLasting(); err != nil {
		k.log.Debug("close the socket towards nftables", "err", err)
	}
	k.nftConn = nil
}

func queueElement(c *nftables.Conn, s plan.Step) error {
	switch s := s.(type) {
	case plan.AddElement:
		e, err := guardElement(s.Element)
		if err != nil {
			return err
		}
		return c.SetAddElements(guardSet(s.Set), []nftables.SetElement{e})
	case plan.DelElement:
		e, err := guardElement(s.Element)
		if err != nil {
			return err
		}
		return c.SetDeleteElements(guardSet(s.Set), []nftables.SetElement{e})
	case plan.AddNeighbour:
		if s.Was != "" {
			if err := queueElement(c, plan.DelNeighbour{Of: s.Of, IP: s.IP, MAC: s.Was}); err != nil {
				return err
			}
		}
		set, e, err := neighbourElement(s.IP, s.MAC)
		if err != nil {
			return err
		}
		return c.SetAddElements(set, e)
	case plan.DelNeighbour:
		set, e, err := neighbourElement(s.IP, s.MAC)
		if err != nil {
			return err
		}
		return c.SetDeleteElements(set, e)
	}
	return fmt.Errorf("%T is not about an element", s)
}

func guardSet(name string) *nftables.Set {
	return &nftables.Set{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: plan.GuardTable}, Name: name}
}

func neighbourElement(ip netip.Addr, mac string) (*nftables.Set, []nftables.SetElement, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return nil, nil, err
	}
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: plan.NeighbourTable}
	return &nftables.Set{Table: table, Name: plan.NeighbourMap(tenant.FamilyOf(ip))}, []nftables.SetElement{{Key: ip.AsSlice(), Val: hw}}, nil
}

// guardElement encodes an element as plans write it: parts joined by " . ", and
// in a map " : " and a value. The kernel compares bytes.
func guardElement(text string) (e nftables.SetElement, err error) {
	key, value, mapped := strings.Cut(text, " : ")
	for p := range strings.SplitSeq(key, " . ") {
		b, err := encodePart(p)
		if err != nil {
			return e, fmt.Errorf("element %q: %w", text, err)
		}
		e.Key = append(e.Key, b...)
	}
	if mapped {
		if e.Val, err = encodePart(value); err != nil {
			return e, fmt.Errorf("element %q: %w", text, err)
		}
	}
	return e, nil
}

// encodePart encodes a mark, a number of the machine; an address, as in packets;
// or a name of a link, which is filled up with zeros.
func encodePart(p string) ([]byte, error) {
	if strings.HasPrefix(p, "0x") {
		m, err := strconv.ParseUint(p, 0, 32)
		return binary.NativeEndian.AppendUint32(nil, uint32(m)), err
	}
	if a, err := netip.ParseAddr(p); err == nil {
		return a.AsSlice(), nil
	}
	if p == "" || len(p) >= unix.IFNAMSIZ || strings.ContainsAny(p, " /:") {
		return nil, fmt.Errorf("%q is no mark, no address and no name of a link", p)
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, p)
	return name, nil
}

// isMissing tells the error about what does not exist. The library wraps some
// of the kernel's errors as text only.
func isMissing(err error) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), "no such file or directory")
}
