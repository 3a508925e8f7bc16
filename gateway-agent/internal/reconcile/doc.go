// SPDX-License-Identifier: Apache-2.0

// Package reconcile is the gateway-agent's one loop. It merges what the bus
// says with what the gateway remembers (Merge, pure), keeps the result on disk
// (Store), lets plan decide what the kernel has to look like, and lets the
// adapters bring it there.
//
// Its rule is fail static: nothing that is merely absent (NATS, a bucket, a
// record, the disk copy) takes a tenant down. Only a tombstone, a confirmed and
// small removal, a move to another group or the operator does.
//
// The loop is the only writer of the kernel and of the disk copy; Merge and
// Memory are plain values.
package reconcile
