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
	if k.elements == nil {
		if k.elements, err = nftables.New(nftables.AsLasting()); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	if err = queue(k.elements); err == nil {
		err = k.elements.Flush()
	}
	if err != nil {
		k.closeElements()
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

func (k *Kernel) closeElements() {
	if k.elements == nil {
		return
	}
	if err := k.elements.CloseLasting(); err != nil {
		k.log.Debug("close the socket towards nftables", "err", err)
	}
	k.elements = nil
}

func queueElement(c *nftables.Conn, s plan.Step) error {
	switch s := s.(type) {
	case plan.AddElement:
		key, err := elementKey(s.Element)
		if err != nil {
			return err
		}
		return c.SetAddElements(guardSet(s.Set), []nftables.SetElement{{Key: key}})
	case plan.DelElement:
		key, err := elementKey(s.Element)
		if err != nil {
			return err
		}
		return c.SetDeleteElements(guardSet(s.Set), []nftables.SetElement{{Key: key}})
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

// elementKey encodes an element as plans write it: an address, or "link . mark .
// address". The kernel compares bytes: names are filled up with zeros, marks
// are numbers of the machine, addresses are as in packets.
func elementKey(e string) ([]byte, error) {
	link, rest, joined := strings.Cut(e, " . ")
	if !joined {
		a, err := netip.ParseAddr(e)
		return a.AsSlice(), err
	}
	mark, ip, _ := strings.Cut(rest, " . ")
	m, err := strconv.ParseUint(mark, 0, 32)
	if err != nil {
		return nil, fmt.Errorf("element %q: %w", e, err)
	}
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, fmt.Errorf("element %q: %w", e, err)
	}
	if len(link) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("element %q: %q is no name of a link", e, link)
	}
	key := make([]byte, unix.IFNAMSIZ, unix.IFNAMSIZ+4+16)
	copy(key, link)
	return append(binary.NativeEndian.AppendUint32(key, uint32(m)), a.AsSlice()...), nil
}

// isMissing tells the error about what does not exist. The library wraps some
// of the kernel's errors as text only.
func isMissing(err error) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), "no such file or directory")
}
