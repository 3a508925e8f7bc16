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

// AuditorPermissions returns what the auditor publishes to: it reads the audit
// and the status.
func AuditorPermissions() []string {
	out := []string{"$JS.API.STREAM.INFO." + AuditStream}
	out = append(out, reading(AuditStream, "*", auditPrefix+".>")...)
	out = append(out, "$JS.API.STREAM.INFO.KV_"+StatusBucket)
	return append(out, reading("KV_"+StatusBucket, "*", "$KV."+StatusBucket+".>")...)
}

// SetupPermissions returns what Setup publishes to. Who holds them can not
// delete a stream or purge one, but can reshape it, down to no content.
func SetupPermissions() []string {
	out := []string{"$JS.API.INFO"}
	for _, stream := range []string{"KV_" + StateBucket, "KV_" + StatusBucket, AuditStream} {
		for _, verb := range []string{"INFO", "CREATE", "UPDATE"} {
			out = append(out, "$JS.API.STREAM."+verb+"."+stream)
		}
	}
	return out
}

// reading is what reading a stream takes: a consumer of a name that shows
// subjects. The filter as part of the subject lets a server refuse any other.
func reading(stream, consumer, subjects string) []string {
	return []string{
		"$JS.API.CONSUMER.CREATE." + stream + "." + consumer + "." + subjects,
		"$JS.API.CONSUMER.DELETE." + stream + "." + consumer,
		"$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer,
	}
}

// Inbox is the prefix of the subjects that a user of this name gets its answers
// on, and the only one that it has to be allowed to subscribe to.
func Inbox(name string) string { return "_INBOX_" + name }
