// SPDX-License-Identifier: Apache-2.0

// Package daemon holds what every long-lived program of this project needs
// around its own work: a logger, a context that ends with a signal, a group of
// goroutines, the health and metrics endpoints, the version, and a coalescing
// trigger. It imports nothing else of this module.
package daemon
