// SPDX-License-Identifier: Apache-2.0

package bus

// What each role publishes to, and has to be allowed. It subscribes to nothing
// but its inbox. No role may delete or purge a stream, and only Setup may create
// or change one.

// GatewayPermissions are those of a gateway-agent whose Follower has the
// gateway's name as Reader.
func GatewayPermissions(gateway string) []string {
	var out []string
	for n := range readerNames {
		out = append(out, reading("KV_"+StateBucket, readerName(gateway, n), "$KV."+StateBucket+".>")...)
	}
	out = append(out, "$JS.API.STREAM.INFO.KV_"+StateBucket)
	return append(out,
		// Writing its own status. The names of keys come with the stream's info.
		"$JS.API.STREAM.INFO.KV_"+StatusBucket,
		"$KV."+StatusBucket+"."+gateway+".>",
		"$JS.API.STREAM.INFO."+AuditStream,
		auditPrefix+".*."+string(RoleGateway)+"."+gateway+".>",
	)
}

// ClusterPermissions are those of all replicas of a cluster-agent.
func ClusterPermissions(cluster string) []string {
	own := "$KV." + StateBucket + "." + cluster + ".>"
	// Writing the state, and comparing it with what is there.
	out := append(reading("KV_"+StateBucket, "*", own), own)
	out = append(out, reading("KV_"+StatusBucket, "*", "$KV."+StatusBucket+".>")...)
	return append(out,
		"$JS.API.STREAM.INFO.KV_"+StateBucket,
		"$JS.API.STREAM.INFO.KV_"+StatusBucket,
		"$JS.API.STREAM.INFO."+AuditStream,
		auditPrefix+".*."+string(RoleCluster)+"."+cluster+".>",
	)
}

// AuditorPermissions are those of who reads the audit and the status.
func AuditorPermissions() []string {
	out := reading(AuditStream, "*", auditPrefix+".>")
	out = append(out, reading("KV_"+StatusBucket, "*", "$KV."+StatusBucket+".>")...)
	return append(out, "$JS.API.STREAM.INFO."+AuditStream, "$JS.API.STREAM.INFO.KV_"+StatusBucket)
}

// SetupPermissions are those of who calls Setup. Their holder can reshape a
// stream, down to no content.
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
// subjects. With the filter as part of the subject the server refuses another
// one, and several, in the request.
func reading(stream, consumer, subjects string) []string {
	return []string{
		"$JS.API.CONSUMER.CREATE." + stream + "." + consumer + "." + subjects,
		"$JS.API.CONSUMER.DELETE." + stream + "." + consumer,
		"$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer,
	}
}

// Inbox is the prefix of the subjects on which a user of this name gets answers.
func Inbox(name string) string { return "_INBOX_" + name }
