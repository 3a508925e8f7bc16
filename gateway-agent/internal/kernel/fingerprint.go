// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// The requests of ip_tables and ip6_tables, and their layouts
// (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
const (
	soGetInfo    = 64 // IPT_SO_GET_INFO
	soGetEntries = 65 // IPT_SO_GET_ENTRIES
	tableName    = 32 // XT_TABLE_MAXNAMELEN
	infoLen      = 84 // struct ipt_getinfo, whose last word is the size of the entries
	entriesHead  = 40 // struct ipt_get_entries, of which the word after the name is that size
	counterLen   = 16 // struct xt_counters
)

// entryLayout is where an entry of a table holds what is looked for.
type entryLayout struct{ next, counters int }

func layoutOf(f tenant.Family) entryLayout {
	if f == tenant.IPv6 {
		return entryLayout{next: 142, counters: 152} // struct ip6t_entry
	}
	return entryLayout{next: 90, counters: 96} // struct ipt_entry
}

// fingerprints tell whether rules of iptables-legacy are as they were: their
// changes nobody counts, and to have iptables-legacy-save write them down takes
// a hundred times as long as to compare what the kernel holds.
type fingerprints struct {
	seed    maphash.Seed
	sockets map[tenant.Family]int
	// seen are those of the rules as they were seen, of the tables in which we have
	// any; a family that is not in it has to be read.
	seen map[tenant.Family]uint64
}

// openFingerprints opens what families need. One that it can not be opened for is
// read each time; the error says why.
func openFingerprints(families []tenant.Family) (*fingerprints, error) {
	p := &fingerprints{seed: maphash.MakeSeed(), sockets: make(map[tenant.Family]int), seen: make(map[tenant.Family]uint64)}
	var err error
	for _, f := range families {
		domain := unix.AF_INET
		if f == tenant.IPv6 {
			domain = unix.AF_INET6
		}
		fd, failed := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", f, failed))
			continue
		}
		p.sockets[f] = fd
	}
	return p, err
}

func (p *fingerprints) close() error {
	var err error
	for _, fd := range p.sockets {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}

// of returns the fingerprint of a family's tables in which chains has some. ok is
// false where there is none, or it can not be told.
func (p *fingerprints) of(f tenant.Family, chains map[plan.ChainID][]string) (sum uint64, ok bool) {
	var names []string
	for id := range chains {
		if id.Family == f && !slices.Contains(names, id.Table) {
			names = append(names, id.Table)
		}
	}
	slices.Sort(names)
	var h maphash.Hash
	h.SetSeed(p.seed)
	for _, name := range names {
		entries, err := p.entries(f, name)
		if err != nil {
			return 0, false
		}
		if !forgetCounters(entries, layoutOf(f)) {
			return 0, false
		}
		h.WriteString(name)
		h.Write(entries)
	}
	return h.Sum64(), len(names) > 0
}

// entries reads a table as the kernel holds it. It must exist: the kernel makes
// one that is asked for.
func (p *fingerprints) entries(f tenant.Family, table string) ([]byte, error) {
	if len(table) >= tableName {
		return nil, unix.EINVAL
	}
	info := make([]byte, infoLen)
	copy(info, table)
	if err := p.get(f, soGetInfo, info); err != nil {
		return nil, err
	}
	size := binary.NativeEndian.Uint32(info[infoLen-4:])
	entries := make([]byte, entriesHead+int(size))
	copy(entries, table)
	binary.NativeEndian.PutUint32(entries[tableName:], size)
	if err := p.get(f, soGetEntries, entries); err != nil { // EAGAIN where it has grown meanwhile
		return nil, err
	}
	return entries[entriesHead:], nil
}

// get is getsockopt(2) with a request within the buffer for the answer.
func (p *fingerprints) get(f tenant.Family, option uintptr, buffer []byte) error {
	fd, open := p.sockets[f]
	if !open {
		return unix.EBADF
	}
	level := uintptr(unix.IPPROTO_IP)
	if f == tenant.IPv6 {
		level = unix.IPPROTO_IPV6
	}
	size := uint32(len(buffer))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), level, option,
		uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// forgetCounters sets what changes with each packet to zero. It returns false if
// entries are not as it knows them.
func forgetCounters(entries []byte, at entryLayout) bool {
	for len(entries) > 0 {
		if len(entries) < at.counters+counterLen {
			return false
		}
		clear(entries[at.counters : at.counters+counterLen])
		next := int(binary.NativeEndian.Uint16(entries[at.next:]))
		if next < at.counters+counterLen || next > len(entries) {
			return false
		}
		entries = entries[next:]
	}
	return true
}

// legacySame tells whether the rules of a family of iptables-legacy are as they
// were seen.
func (k *Kernel) legacySame(f tenant.Family) bool {
	before, known := k.prints.seen[f]
	if !known {
		return false
	}
	now, ok := k.prints.of(f, k.seen.chains)
	return ok && now == before
}

// legacyLoaded notes that steps were carried out in a family: of what was known
// before it is known what it is now.
func (k *Kernel) legacyLoaded(f tenant.Family, known bool) {
	delete(k.prints.seen, f)
	if now, ok := k.prints.of(f, k.seen.chains); ok && known {
		k.prints.seen[f] = now
	}
}
