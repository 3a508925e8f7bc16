// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"egress-gateway.io/shared/tenant"
)

const (
	// bucketHistory above 1 keeps a live key from being missing in a reader's
	// first read while it is being rewritten: 8 made that disappear.
	bucketHistory = 8
	// markerTTL is how long the marker of a purged key stays.
	markerTTL = 24 * time.Hour
	// bucketBytes keeps the holder of one key from filling the disk. 4,000 tenants
	// with 8 revisions each take a twentieth.
	bucketBytes = 1 << 30

	auditAge        = 90 * 24 * time.Hour
	auditBytes      = 1 << 30
	auditDuplicates = 10 * time.Minute

	// noPeers is nats-server's JSClusterNoPeersErrF: there are too few servers for
	// the copies. Servers that have just started see each other after a while.
	noPeers jetstream.ErrorCode = 10005
)

// Setup makes the buckets and the stream that the agents need, and makes those
// that are there what they should be, without loss of content. replicas is the
// number of copies of each: 1, or 3 in a cluster of three servers. It returns
// what it did, one line each; nothing if there was nothing to do. Servers that do
// not answer, or are not ready yet, are asked again until ctx ends.
//
// It takes the rights of SetupPermissions, which no agent has.
func Setup(ctx context.Context, conn *Conn, replicas int) ([]string, error) {
	if err := conn.WaitConnected(ctx); err != nil {
		return nil, fmt.Errorf("set up NATS: %w", err)
	}
	var done []string
	for _, b := range []struct{ bucket, description string }{
		{StateBucket, "egress-gateway: what the clusters want of the gateways"},
		{StatusBucket, "egress-gateway: what the gateways have done"},
	} {
		what, err := conn.ensure(ctx, streamOf(b.bucket), func(ctx context.Context) error {
			return conn.setBucket(ctx, b.bucket, b.description, replicas)
		})
		if err != nil {
			return done, fmt.Errorf("set up bucket %s: %w", b.bucket, err)
		}
		if what != "" {
			done = append(done, "bucket "+b.bucket+" "+what)
		}
	}
	what, err := conn.ensure(ctx, AuditStream, func(ctx context.Context) error { return conn.setAuditStream(ctx, replicas) })
	if err != nil {
		return done, fmt.Errorf("set up stream %s: %w", AuditStream, err)
	}
	if what != "" {
		done = append(done, "stream "+AuditStream+" "+what)
	}
	return done, nil
}

// ensure runs set until it succeeds, and says what it did to a stream: "created",
// "changed" or nothing.
func (c *Conn) ensure(ctx context.Context, stream string, set func(context.Context) error) (string, error) {
	for {
		what, err := c.ensureOnce(ctx, stream, set)
		if err == nil || !passing(err) {
			return what, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(maxRetry):
		}
	}
}

// passing says whether an error may go away by itself.
func passing(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, errNoAnswer) || errors.Is(err, ErrNotConnected) ||
		errors.As(err, &api) && (api.Code == http.StatusServiceUnavailable || api.ErrorCode == noPeers)
}

func (c *Conn) ensureOnce(ctx context.Context, stream string, set func(context.Context) error) (string, error) {
	before, err := c.stream(ctx, stream)
	if err != nil && !isMissing(err) {
		return "", err
	}
	missing := err != nil
	if _, err := request(ctx, c, func(ctx context.Context) (bool, error) { return true, set(ctx) }); err != nil {
		return "", err
	}
	if missing {
		return "created", nil
	}
	after, err := c.stream(ctx, stream)
	if err != nil {
		return "", err
	}
	if !reflect.DeepEqual(before.CachedInfo().Config, after.CachedInfo().Config) {
		return "changed", nil
	}
	return "", nil
}

func (c *Conn) setBucket(ctx context.Context, bucket, description string, replicas int) error {
	cfg := jetstream.KeyValueConfig{
		Bucket:         bucket,
		Description:    description,
		History:        bucketHistory,
		MaxValueSize:   tenant.MaxRecord,
		MaxBytes:       bucketBytes,
		Storage:        jetstream.FileStorage,
		Replicas:       replicas,
		LimitMarkerTTL: markerTTL,
	}
	_, err := c.js.CreateOrUpdateKeyValue(ctx, cfg)
	if errors.Is(err, jetstream.ErrLimitMarkerTTLNotSupported) {
		cfg.LimitMarkerTTL = 0 // a server before 2.11: markers stay
		_, err = c.js.CreateOrUpdateKeyValue(ctx, cfg)
	}
	return err
}

func (c *Conn) setAuditStream(ctx context.Context, replicas int) error {
	_, err := c.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        AuditStream,
		Description: "egress-gateway: what happened",
		Subjects:    []string{auditPrefix + ".>"},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		MaxAge:      auditAge,
		MaxBytes:    auditBytes,
		Duplicates:  auditDuplicates,
		Replicas:    replicas,
		DenyDelete:  true,
		DenyPurge:   true,
		Compression: jetstream.S2Compression,
	})
	return err
}
