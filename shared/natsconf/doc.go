// SPDX-License-Identifier: Apache-2.0

// Package natsconf makes what a secured NATS needs: the configuration of one
// server or of a cluster of servers, with TLS, users and least permissions; and
// the directory that `egressctl init` keeps, with its authorities, certificates,
// nkeys and a folder for each machine.
//
// Installation is the model: who there is, and no secret. Conf renders a server's
// nats.conf from it. Dir keeps an installation on disk, with the secrets.
//
// A user is known by an nkey, and connects with a certificate of the clients'
// authority. Its permissions are those of shared/bus, which are what the agents
// really use. The servers of a cluster know each other by another authority: no
// client's certificate opens a route.
package natsconf
