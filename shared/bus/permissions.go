// SPDX-License-Identifier: Apache-2.0

package bus

// GatewayPermissions returns the subjects that a gateway-agent publishes to, and
// has to be allowed. It subscribes to `_INBOX_<gateway>.>` only.
func GatewayPermissions(gateway string) []string {
	return []string{
		// Reading the state.
		"$JS.API.STREAM.INFO.KV_" + StateBucket,
		"$JS.API.CONSUMER.CREATE.KV_" + StateBucket + ".>",
		"$JS.API.CONSUMER.DELETE.KV_" + StateBucket + ".*",
		"$JS.API.CONSUMER.MSG.NEXT.KV_" + StateBucket + ".*",
		// Writing its own status. The names of keys come with the stream's info.
		"$JS.API.STREAM.INFO.KV_" + StatusBucket,
		"$KV." + StatusBucket + "." + gateway + ".>",
		// Audit.
		"$JS.API.STREAM.INFO." + AuditStream,
		auditPrefix + ".*." + string(RoleGateway) + "." + gateway + ".>",
	}
}

// ClusterPermissions returns the subjects that a cluster-agent publishes to, and
// has to be allowed. It subscribes to the inbox of its connection's name only.
// It creates what is missing, and may not change, delete or purge any of it.
func ClusterPermissions(cluster string) []string {
	return []string{
		"$JS.API.INFO",
		"$JS.API.STREAM.CREATE.KV_" + StateBucket,
		"$JS.API.STREAM.CREATE.KV_" + StatusBucket,
		"$JS.API.STREAM.CREATE." + AuditStream,
		// Writing the state, and comparing it with what is there.
		"$JS.API.STREAM.INFO.KV_" + StateBucket,
		"$JS.API.CONSUMER.CREATE.KV_" + StateBucket + ".*.$KV." + StateBucket + "." + cluster + ".>",
		"$JS.API.CONSUMER.DELETE.KV_" + StateBucket + ".*",
		"$JS.API.CONSUMER.MSG.NEXT.KV_" + StateBucket + ".*",
		"$KV." + StateBucket + "." + cluster + ".>",
		// Reading the status.
		"$JS.API.STREAM.INFO.KV_" + StatusBucket,
		"$JS.API.CONSUMER.CREATE.KV_" + StatusBucket + ".>",
		"$JS.API.CONSUMER.DELETE.KV_" + StatusBucket + ".*",
		"$JS.API.CONSUMER.MSG.NEXT.KV_" + StatusBucket + ".*",
		// Audit.
		"$JS.API.STREAM.INFO." + AuditStream,
		auditPrefix + ".*." + string(RoleCluster) + "." + cluster + ".>",
	}
}
