// SPDX-License-Identifier: Apache-2.0

package natsserver

import (
	"fmt"
	"log/slog"
)

// logger hands the server's messages to slog. Its notices are of no interest
// while all is well.
type logger struct {
	log   *slog.Logger
	fatal chan error // the first message of a server that can not start
}

func (l *logger) Noticef(format string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(format string, v ...any)  {} // of each connection
func (l *logger) Tracef(format string, v ...any)  {} // of each message, with its content
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn("nats: " + fmt.Sprintf(format, v...)) }
func (l *logger) Errorf(format string, v ...any)  { l.log.Error("nats: " + fmt.Sprintf(format, v...)) }

// Fatalf would end the process of a server that runs by itself.
func (l *logger) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Errorf(format, v...):
	default:
	}
}
