// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// KindRepeated is the kind of events that say which events of a process NATS had
// already, by their IDs, and did not store again.
const KindRepeated = "repeated"

// Repeated are numbers of a process that the stream does not hold: what they say
// was told before, with the same ID.
type Repeated struct {
	BootID string `json:"bootid"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
}

type repeatedData struct {
	Events []Repeated `json:"events"`
}

// DecodeRepeated decodes the content of an event of kind "repeated". No event
// tells of more than one batch of publishing, so the numbers can be counted.
func DecodeRepeated(data json.RawMessage) ([]Repeated, error) {
	var d repeatedData
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("repeated events: %w", err)
	}
	var n uint64
	for _, r := range d.Events {
		if r.First > r.Last {
			return nil, fmt.Errorf("repeated events %d to %d", r.First, r.Last)
		}
		if n += r.Last - r.First + 1; r.Last-r.First >= publishWindow || n > publishWindow {
			return nil, fmt.Errorf("repeated events: more than %d at once", publishWindow)
		}
	}
	if n == 0 {
		return nil, errors.New("repeated events: none")
	}
	return d.Events, nil
}

// addRepeated adds an event that the server has already. An ID of its own it can
// share only with itself: it was published twice, and its number is there.
func addRepeated(list []Repeated, event json.RawMessage) []Repeated {
	var e cloudEvent
	if err := json.Unmarshal(event, &e); err != nil {
		return list
	}
	n, err := strconv.ParseUint(e.Sequence, 10, 64)
	if err != nil || e.ID == ownID(e.Source, e.BootID, n) {
		return list
	}
	if i := len(list) - 1; i >= 0 && list[i].BootID == e.BootID && list[i].Last+1 == n {
		list[i].Last = n
		return list
	}
	return append(list, Repeated{BootID: e.BootID, First: n, Last: n})
}

// ownID is the ID of an event whose content has no identity.
func ownID(source, bootID string, number uint64) string {
	return source + "/" + bootID + "/" + strconv.FormatUint(number, 10)
}
