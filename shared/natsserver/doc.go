// SPDX-License-Identifier: Apache-2.0

// Package natsserver runs a NATS server inside the calling process: for a
// gateway VM on which nothing else is to be installed. It is the only package
// that imports nats-server.
//
// The server has the configuration that `egressctl init` writes, and with it the
// security of one that runs by itself: TLS, nkeys, an account, least
// permissions. Only a few things are not taken from there: where the store is,
// perhaps the address, and everything that belongs to a process of its own
// (signals, log files, pid files).
//
// Whatever is wrong with it is an error to tell, with its remedy, and to try
// again: it never ends the process.
package natsserver
