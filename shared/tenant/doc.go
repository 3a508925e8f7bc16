// SPDX-License-Identifier: Apache-2.0

// Package tenant holds the records that the cluster-agent and the gateway-agents
// exchange over NATS: their types, their validation, their JSON form and the
// names of their keys. It imports the standard library only and does no I/O.
//
// Every record carries a schema version. A reader accepts exactly the versions
// it knows and returns an error that names the version otherwise: a record that
// is half understood would program half a tenant.
//
// All types are plain values. Functions are safe for concurrent use.
package tenant
