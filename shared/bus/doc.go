// SPDX-License-Identifier: Apache-2.0

// Package bus is how the agents speak over NATS JetStream. It is the only
// package that imports nats.go.
//
//   - Conn is one connection that never gives up.
//   - Writer and Follower are the two ends of the bucket egress-state: intent,
//     from the cluster to the gateways.
//   - StatusWriter and StatusFollower are the two ends of the bucket
//     egress-status: acknowledgements, from the gateways to the cluster.
//   - Audit publishes events to the stream EGRESS_AUDIT through a spool on disk;
//     ReadAudit reads them.
//
// A watch of NATS resumes late, goes deaf when a bucket is recreated, and can
// miss a live key at first. Therefore every reader in this package reads one
// bucket with one mechanism (watcher): it never resumes, but reads everything
// again whenever anything may have been lost.
//
// All exported types are safe for concurrent use. Nothing here runs in the
// background but what the documentation of a Run method says.
package bus

// Names on the NATS server.
const (
	StateBucket  = "egress-state"
	StatusBucket = "egress-status"
	AuditStream  = "EGRESS_AUDIT"
	auditPrefix  = "egress.audit"
)
