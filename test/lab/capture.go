// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab/namespace"
)

// The ring holds 512 Ki packets, seconds of full load: the reader may be slow.
const (
	frameSize  = 256
	blockSize  = 1 << 20
	blockCount = 128
	frameCount = blockCount * (blockSize / frameSize)
	// snapLen leaves room in a frame for the kernel's own headers.
	snapLen = 160
	// keptPerSource packets of each source are kept for diagnosis.
	keptPerSource = 3
)

// Capture listens on the external wire to all that gateway VMs send. It holds
// across ResetGateway.
type Capture struct {
	fd   int
	ring []byte
	wake [2]int // a pipe: closing its write end ends the reader

	each     func(Packet) // may be nil
	stopping atomic.Bool
	expected atomic.Uint64 // packets that the kernel put into the ring; valid once stopping
	result   Result
	done     chan struct{}
}

// Result is what a capture has seen.
type Result struct {
	Packets     uint64                // IPv4 and IPv6
	BySource    map[netip.Addr]uint64 // the same by source address
	First       map[netip.Addr][]Packet
	ARP         map[netip.Addr]map[string]uint64 // ARP packets by sender address and sender MAC
	Other       uint64                           // neither IP nor ARP
	KernelDrops uint64                           // packets that the capture missed: if not 0, no count proves anything
}

// Packet is one kept packet.
type Packet struct {
	Time     time.Time
	Src, Dst netip.Addr
	Protocol uint8  // IP protocol number
	Header   []byte // from the Ethernet header on, at most snapLen bytes
}

func (p Packet) String() string {
	return fmt.Sprintf("%s %s -> %s protocol %d: %x", p.Time.Format("15:04:05.000000"), p.Src, p.Dst, p.Protocol, p.Header)
}

// Foreign returns the counts of sources that are not allowed. IPv6 link-local
// and unspecified sources, which neighbour discovery uses, are no one's.
func (r Result) Foreign(allowed ...netip.Addr) map[netip.Addr]uint64 {
	foreign := map[netip.Addr]uint64{}
	for src, n := range r.BySource {
		if !src.IsLinkLocalUnicast() && !(src.Is6() && src.IsUnspecified()) {
			foreign[src] = n
		}
	}
	for _, a := range allowed {
		delete(foreign, a)
	}
	return foreign
}

// Problems says in words what is wrong with what left: each source that is not
// allowed, or that the capture missed packets and so proves nothing.
func (r Result) Problems(allowed ...netip.Addr) []string {
	var out []string
	if r.KernelDrops > 0 {
		out = append(out, fmt.Sprintf("the capture missed %d packets: it proves nothing", r.KernelDrops))
	}
	foreign := r.Foreign(allowed...)
	for _, source := range slices.SortedFunc(maps.Keys(foreign), netip.Addr.Compare) {
		out = append(out, fmt.Sprintf("LEAK: %d packets left with source %s, which is no tenant's egress IP; the first: %v", foreign[source], source, r.First[source]))
	}
	return out
}

// CaptureExternal starts a capture on the ports of the external switch,
// incoming packets only. The caller ends it with Stop.
func (l *Lab) CaptureExternal() (*Capture, error) { return l.CaptureExternalEach(nil) }

// CaptureExternalEach is CaptureExternal that also hands each IP packet to each,
// in the order of the ring, from a goroutine of its own; the last one before
// Stop returns. The packet's Header is valid during the call only. A slow each
// costs nothing until the ring is full, which shows as KernelDrops.
func (l *Lab) CaptureExternalEach(each func(Packet)) (*Capture, error) {
	h, err := l.netlink(PartExternal)
	if err != nil {
		return nil, err
	}
	c := &Capture{each: each, fd: -1, wake: [2]int{-1, -1}, done: make(chan struct{}), result: Result{
		BySource: map[netip.Addr]uint64{}, First: map[netip.Addr][]Packet{}, ARP: map[netip.Addr]map[string]uint64{}}}
	err = namespace.Do(l.Namespace(PartExternal), func() error { return c.open(h) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("capture external wire: %w", err), c.close())
	}
	go c.read()
	return c, nil
}

func (c *Capture) open(h *netlink.Handle) (err error) {
	// Protocol 0: nothing arrives before the filter and the ring are in place.
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.Pipe2(c.wake[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	filter, err := notFrom(h, "lo", bridge)
	if err != nil {
		return err
	}
	if err := setFilter(c.fd, filter); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return err
	}
	req := unix.TpacketReq{Block_size: blockSize, Block_nr: blockCount, Frame_size: frameSize, Frame_nr: frameCount}
	if err := unix.SetsockoptTpacketReq(c.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return err
	}
	if c.ring, err = unix.Mmap(c.fd, 0, blockSize*blockCount, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	// All interfaces: ports come and go with the machines.
	return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)})
}

// notFrom is a filter that keeps the head of each packet, but for those of the
// named interfaces: the bridge shows each packet of its ports once more.
func notFrom(h *netlink.Handle, names ...string) ([]bpf.Instruction, error) {
	filter := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtInterfaceIndex}}
	for i, name := range names {
		link, err := h.LinkByName(name)
		if err != nil {
			return nil, err
		}
		toDrop := uint8(len(names) - i)
		filter = append(filter, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(link.Attrs().Index), SkipTrue: toDrop})
	}
	return append(filter, bpf.RetConstant{Val: snapLen}, bpf.RetConstant{Val: 0}), nil
}

func setFilter(fd int, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
}

// Stop ends the capture once each packet that arrived before the call is
// counted. A second call returns an error.
func (c *Capture) Stop() (Result, error) {
	if c.stopping.Load() {
		return Result{}, errors.New("stop capture: stopped already")
	}
	// From here on nothing enters the ring, so the kernel's count is final.
	if err := setFilter(c.fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil {
		return Result{}, fmt.Errorf("stop capture: %w", err)
	}
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return Result{}, fmt.Errorf("stop capture: %w", err)
	}
	c.expected.Store(uint64(stats.Packets - stats.Drops))
	c.stopping.Store(true)
	err = unix.Close(c.wake[1])
	c.wake[1] = -1
	<-c.done
	c.result.KernelDrops = uint64(stats.Drops)
	return c.result, errors.Join(err, c.close())
}

func (c *Capture) close() error {
	var errs []error
	if c.ring != nil {
		errs = append(errs, unix.Munmap(c.ring))
	}
	for _, fd := range []int{c.fd, c.wake[0], c.wake[1]} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// read walks the ring until all packets before Stop are counted.
func (c *Capture) read() {
	defer close(c.done)
	var seen uint64
	for slot := 0; ; slot = (slot + 1) % frameCount {
		frame := c.ring[slot*frameSize : (slot+1)*frameSize]
		status := (*uint32)(unsafe.Pointer(&frame[0]))
		for atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
			if c.stopping.Load() && seen >= c.expected.Load() {
				return
			}
			c.wait()
		}
		c.count(frame)
		seen++
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
	}
}

func (c *Capture) wait() {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.wake[0]), Events: unix.POLLIN}}
	// Errors (EINTR) lead to one more look at the ring, no more.
	_, _ = unix.Poll(fds, -1)
}

func (c *Capture) count(frame []byte) {
	hdr := (*unix.Tpacket2Hdr)(unsafe.Pointer(&frame[0]))
	data := frame[hdr.Mac:min(uint32(hdr.Mac)+hdr.Snaplen, frameSize)]
	if len(data) < 14 {
		c.result.Other++
		return
	}
	p := Packet{Time: time.Unix(int64(hdr.Sec), int64(hdr.Nsec))}
	ip := data[14:]
	switch etherType := binary.BigEndian.Uint16(data[12:]); {
	case etherType == unix.ETH_P_IP && len(ip) >= 20:
		p.Src, p.Dst, p.Protocol = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20])), ip[9]
	case etherType == unix.ETH_P_IPV6 && len(ip) >= 40:
		p.Src, p.Dst, p.Protocol = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40])), ip[6]
	case etherType == unix.ETH_P_ARP && len(ip) >= 28:
		c.countARP(ip)
		return
	default:
		c.result.Other++
		return
	}
	c.result.Packets++
	c.result.BySource[p.Src]++
	p.Header = data
	if c.each != nil {
		c.each(p)
	}
	if first := c.result.First[p.Src]; len(first) < keptPerSource {
		p.Header = append([]byte(nil), data...)
		c.result.First[p.Src] = append(first, p)
	}
}

func (c *Capture) countARP(arp []byte) {
	sender := netip.AddrFrom4([4]byte(arp[14:18]))
	if c.result.ARP[sender] == nil {
		c.result.ARP[sender] = map[string]uint64{}
	}
	c.result.ARP[sender][net.HardwareAddr(arp[8:14]).String()]++
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
