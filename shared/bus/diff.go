// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"maps"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// diff returns the writes, in the order of their keys, that turn what the
// bucket holds into what is wanted.
func (w *Writer) diff(m mirror, want map[string][]byte) ([]write, SyncResult) {
	var writes []write
	var res SyncResult
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have, ok := m.entries[key]; !ok || have.gone || !bytes.Equal(have.value, want[key]) {
			writes = append(writes, write{key: key, value: want[key]})
			res.Written++
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.entries)) {
		have := m.entries[key]
		if _, wanted := want[key]; wanted || have.gone {
			continue
		}
		k, err := tenant.ParseKey(key)
		if err != nil || !digested(k) {
			continue // Ready and heartbeat; and garbage, which hurts nobody
		}
		if k.Kind != tenant.KindTenant {
			writes = append(writes, write{key: key, purge: true})
			res.Purged++
			continue
		}
		switch stone, old := w.tombstone(k, have); {
		case stone != nil:
			writes = append(writes, write{key: key, value: stone})
			res.Released++
		case old:
			writes = append(writes, write{key: key, purge: true})
			res.Purged++
		}
	}
	return writes, res
}

// tombstone returns the tombstone that has to replace a tenant's record, or nil
// if there is one already; old says that it has done its duty.
//
// A record that can not be read gets one as well: the writer knows that the
// tenant is not wanted, whatever it was.
func (w *Writer) tombstone(k tenant.Key, have entry) (stone []byte, old bool) {
	t, err := tenant.DecodeTenant(k, have.value)
	if err == nil && t.Released {
		return nil, w.opts.Clock().Sub(have.time) > tombstoneFor
	}
	uid := t.UID
	if err != nil {
		uid = "unknown"
	}
	return tenant.Encode(tenant.Tenant{
		Schema: tenant.Schema, Cluster: k.Cluster, Name: k.Name,
		UID: uid, Generation: t.Generation + 1, Released: true,
	}), false
}

// ready returns the Ready record for what the bucket now holds, and whether it
// has to be written.
func (w *Writer) ready(m mirror) (r tenant.Ready, due bool) {
	values := make(map[string][]byte, len(m.entries))
	for key, e := range m.entries {
		if k, err := tenant.ParseKey(key); err == nil && digested(k) && !e.gone {
			values[key] = e.value
		}
	}
	r = tenant.Ready{
		Schema: tenant.Schema, Cluster: w.cluster, Epoch: m.bucket.epoch(),
		Count: len(values), Hash: tenant.Digest(values),
	}
	key := tenant.ReadyKey(w.cluster)
	var before tenant.Ready
	if e, ok := m.entries[key.String()]; ok && !e.gone {
		// One that can not be read counts as none, and is written over.
		before, _ = tenant.DecodeReady(key, e.value)
	}
	w.mu.Lock()
	last := w.last
	w.mu.Unlock()
	r.Generation = before.Generation
	if r == before && before.Generation >= last {
		return r, false
	}
	r.Generation = max(before.Generation+1, last+1, w.opts.Clock().UnixMilli())
	return r, true
}

// begin implements feed.
func (w *Writer) begin(i incarnation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.absent = false
	w.mirror = mirror{bucket: i, entries: map[string]entry{}}
}

// apply implements feed.
func (w *Writer) apply(batch []entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range batch {
		if !w.mirror.store(e) {
			continue
		}
		if w.mirror.loaded && w.foreign(e) {
			w.due = true
		}
		w.learn(e)
	}
}

// learn keeps the generation of Ready records, so that ours go on from there
// even in a bucket that is empty again, and with a clock that is behind.
func (w *Writer) learn(e entry) {
	key := tenant.ReadyKey(w.cluster)
	if e.gone || e.key != key.String() {
		return
	}
	if r, err := tenant.DecodeReady(key, e.value); err == nil {
		w.last = max(w.last, r.Generation)
	}
}

// foreign says whether a write is somebody else's, and contradicts what was last
// asked for. Our own may come here before their acknowledgement is processed.
func (w *Writer) foreign(e entry) bool {
	if w.want == nil {
		return false // never wrote: a replica that is not the leader
	}
	k, err := tenant.ParseKey(e.key)
	if err != nil {
		return false
	}
	value, wanted := w.want[e.key]
	switch {
	case k.Kind == tenant.KindHeartbeat:
		return false
	case k.Kind == tenant.KindReady:
		r, err := tenant.DecodeReady(k, e.value)
		return e.gone || err != nil || r.Generation != w.last
	case wanted:
		return e.gone || !bytes.Equal(value, e.value)
	case k.Kind == tenant.KindTenant && !e.gone:
		t, err := tenant.DecodeTenant(k, e.value)
		return err != nil || !t.Released
	default:
		return !e.gone
	}
}

// loaded implements feed.
func (w *Writer) loaded() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mirror.loaded = true
	w.wakeUp()
	poke(w.changed)
}

// lost implements feed.
func (w *Writer) lost(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mirror.loaded = false
	news := isMissing(err) && !w.absent
	w.absent = isMissing(err)
	w.wakeUp()
	if news {
		poke(w.changed)
	}
}

// tick implements feed. What is due is reported here and not at once, so that
// two writers at odds, or one that always fails, do not go round and round.
func (w *Writer) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.due && (w.mirror.loaded || w.absent) {
		w.due = false
		poke(w.changed)
	}
}

func (w *Writer) wakeUp() {
	close(w.wake)
	w.wake = make(chan struct{})
}
