// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"egress-gateway.io/shared/bus"
)

// Everybody who may connect, and where the credentials lie.
var folders = map[string]string{"c1": "clusters/c1", "gw1": "gateways/gw1", "auditor": "auditor", "setup": "setup"}

// The users in the order of the table's columns.
var users = []string{"c1", "gw1", "auditor", "setup"}

// publishing says who may publish what; nobody else may. A right that is not
// here is one that nobody has: see TestNoOtherRight.
var publishing = []struct {
	what, subject string
	allowed       string
}{
	{"write its cluster's tenants", "$KV.egress-state.c1.tenant.ns-blue", "c1"},
	{"write its cluster's ready record", "$KV.egress-state.c1.meta.ready", "c1"},
	{"write another cluster's tenants", "$KV.egress-state.c2.tenant.ns-blue", ""},
	{"write another cluster's ready record", "$KV.egress-state.c2.meta.ready", ""},
	{"write its own status", "$KV.egress-status.gw1.tenant.c1.ns-blue", "gw1"},
	{"write another gateway's status", "$KV.egress-status.gw2.tenant.c1.ns-blue", ""},
	{"write another gateway's summary", "$KV.egress-status.gw2.summary", ""},
	{"tell the audit as gateway gw1", "egress.audit.c1.gw.gw1.programmed", "gw1"},
	{"tell the audit as gateway gw2", "egress.audit.c1.gw.gw2.programmed", ""},
	{"tell the audit as cluster c1", "egress.audit.c1.ca.c1.alloc", "c1"},
	{"tell the audit as cluster c2", "egress.audit.c2.ca.c2.alloc", ""},
	{"tell the audit as somebody else", "egress.audit.c1.xx.gw1.alloc", ""},
	{"tell the audit outside of the pattern", "egress.audit.alloc", ""},
	{"answer into another's inbox", "_INBOX_gw2.x.y", ""},

	{"look at the state's bucket", "$JS.API.STREAM.INFO.KV_egress-state", "c1 gw1 setup"},
	{"look at the status's bucket", "$JS.API.STREAM.INFO.KV_egress-status", "c1 gw1 auditor setup"},
	{"look at the audit's stream", "$JS.API.STREAM.INFO.EGRESS_AUDIT", "c1 gw1 auditor setup"},
	{"look at the account", "$JS.API.INFO", "setup"},
	{"list streams", "$JS.API.STREAM.NAMES", ""},
	{"list streams with their configuration", "$JS.API.STREAM.LIST", ""},

	{"read its cluster's state", "$JS.API.CONSUMER.CREATE.KV_egress-state.any.$KV.egress-state.c1.>", "c1"},
	{"read another cluster's state", "$JS.API.CONSUMER.CREATE.KV_egress-state.any.$KV.egress-state.c2.>", ""},
	{"read all state with a name of any kind", "$JS.API.CONSUMER.CREATE.KV_egress-state.any.$KV.egress-state.>", ""},
	{"read all state with its own name", "$JS.API.CONSUMER.CREATE.KV_egress-state.gw1_0.$KV.egress-state.>", "gw1"},
	{"read all state with another's name", "$JS.API.CONSUMER.CREATE.KV_egress-state.gw2_0.$KV.egress-state.>", ""},
	{"read state with a filter of its own", "$JS.API.CONSUMER.CREATE.KV_egress-state.gw1_0", ""},
	{"read state with a nameless reader", "$JS.API.CONSUMER.CREATE.KV_egress-state", ""},
	{"read state with a durable reader", "$JS.API.CONSUMER.DURABLE.CREATE.KV_egress-state.gw1_0", ""},
	{"take another gateway's messages", "$JS.API.CONSUMER.MSG.NEXT.KV_egress-state.gw2_0", "c1"},
	{"remove another gateway's reader", "$JS.API.CONSUMER.DELETE.KV_egress-state.gw2_0", "c1"},
	{"read the status", "$JS.API.CONSUMER.CREATE.KV_egress-status.any.$KV.egress-status.>", "c1 auditor"},
	{"read the audit", "$JS.API.CONSUMER.CREATE.EGRESS_AUDIT.any.egress.audit.>", "auditor"},
	{"read a state record", "$JS.API.DIRECT.GET.KV_egress-state.$KV.egress-state.c1.tenant.ns-blue", ""},
	{"read an audit message", "$JS.API.STREAM.MSG.GET.EGRESS_AUDIT", ""},
	{"pause a reader", "$JS.API.CONSUMER.PAUSE.KV_egress-state.gw2_0", ""},
}

// Verbs of the API that act on a stream, and who may use them on ours.
var streamVerbs = map[string]string{
	"CREATE": "setup", "UPDATE": "setup",
	"DELETE": "", "PURGE": "", "MSG.DELETE": "", "SNAPSHOT": "", "RESTORE": "",
	"PEER.REMOVE": "", "LEADER.STEPDOWN": "",
}

// subscribing says who may listen to what.
var subscribing = []struct {
	what, subject, allowed string
}{
	{"its own inbox", "_INBOX_%s.>", "c1 gw1 auditor setup"},
	{"another gateway's inbox", "_INBOX_gw2.>", ""},
	{"another cluster's inbox", "_INBOX_c2.>", ""},
	{"all inboxes", "_INBOX_*.>", ""},
	{"the inboxes of others", "_INBOX.>", ""},
	{"everything", ">", ""},
	{"the state as it is written", "$KV.egress-state.>", ""},
	{"its own status as it is written", "$KV.egress-status.gw1.>", ""},
	{"the audit as it is told", "egress.audit.>", ""},
	{"requests of the API", "$JS.API.>", ""},
	{"events of JetStream", "$JS.EVENT.>", ""},
	{"events of the server", "$SYS.>", ""},
}

// What each role can do, and that it can do nothing else, on the server that
// runs on the configuration made.
func TestRoles(t *testing.T) {
	t.Parallel()
	n := startServer(t)
	for _, user := range users {
		c := n.client(folders[user])
		for _, row := range publishing {
			c.check(t, user+" can "+row.what, "publish to "+row.subject, may(row.allowed, user), func() error { return c.Publish(row.subject, []byte("{}")) })
		}
		for verb, allowed := range streamVerbs {
			for _, stream := range []string{"KV_egress-state", "KV_egress-status", "EGRESS_AUDIT", "OTHER"} {
				subject := "$JS.API.STREAM." + verb + "." + stream
				ok := may(allowed, user) && stream != "OTHER"
				// Not with a body that would be obeyed.
				c.check(t, user+" can "+verb+" "+stream, "publish to "+subject, ok, func() error { return c.Publish(subject, []byte("{}")) })
			}
		}
		for _, row := range subscribing {
			subject := strings.ReplaceAll(row.subject, "%s", user)
			c.check(t, user+" can listen to "+row.what, "subscription to "+subject, may(row.allowed, user), func() error {
				_, err := c.SubscribeSync(subject)
				return err
			})
		}
	}
	auditIsWhole(t, n)
}

func may(allowed, user string) bool { return slices.Contains(strings.Fields(allowed), user) }

// check does something and asks whether the server took or refused it.
func (c *client) check(t *testing.T, what, violation string, allowed bool, do func() error) {
	t.Helper()
	if err := do(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if err := c.Flush(); err != nil { // its answer comes after a refusal
		t.Fatalf("%s: %v", what, err)
	}
	refused := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for text := range c.refused {
			if strings.Contains(strings.ToLower(text), strings.ToLower(quoted(violation))) {
				return true
			}
		}
		return false
	}
	if allowed {
		if err := c.LastError(); refused() {
			t.Errorf("%s = false: %v", what, err)
		}
		return
	}
	eventually(t, "the refusal of: "+what, refused)
}

// quoted is how the server writes a violation.
func quoted(violation string) string {
	i := strings.LastIndex(violation, " ")
	return violation[:i+1] + `"` + violation[i+1:] + `"`
}

// auditIsWhole checks that nobody's attempt left anything in the audit but what
// its sender may put there.
func auditIsWhole(t *testing.T, n *natsServer) {
	t.Helper()
	var got []string
	err := bus.ReadAudit(within(t), n.conn("auditor", "auditor"), bus.AuditFilter{}, func(e bus.AuditEvent) error {
		got = append(got, e.NatsSubject)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if want := []string{"egress.audit.c1.ca.c1.alloc", "egress.audit.c1.gw.gw1.programmed"}; !slices.Equal(got, want) {
		t.Errorf("the audit holds %v, want %v", got, want)
	}
}

// The tables cover every right that the configuration gives.
func TestNoOtherRight(t *testing.T) {
	t.Parallel()
	d := aDir(t)
	for _, u := range d.inst.Users {
		for _, granted := range u.permissions() {
			if u.Name == "gw2" || coveredByTable(u.Name, granted) {
				continue
			}
			t.Errorf("%s may publish to %s, which no row of the tables has", u.Name, granted)
		}
	}
}

// coveredByTable says whether a row allows a user something that a granted
// subject allows. What only differs in the reader's number counts as one, as do
// the three requests of a reader.
func coveredByTable(user, granted string) bool {
	for _, verb := range []string{"DELETE", "MSG.NEXT"} {
		if strings.HasPrefix(granted, "$JS.API.CONSUMER."+verb+".") {
			return true // of its own readers; the table has those of others
		}
	}
	for i := range 10 {
		granted = strings.Replace(granted, fmt.Sprintf(".%s_%d.", user, i), "."+user+"_0.", 1)
	}
	var subjects []string
	for _, row := range publishing {
		if may(row.allowed, user) {
			subjects = append(subjects, row.subject)
		}
	}
	for verb, allowed := range streamVerbs {
		if may(allowed, user) {
			for _, s := range []string{"KV_egress-state", "KV_egress-status", "EGRESS_AUDIT"} {
				subjects = append(subjects, "$JS.API.STREAM."+verb+"."+s)
			}
		}
	}
	return slices.ContainsFunc(subjects, func(s string) bool { return subjectMatches(granted, s) })
}

func subjectMatches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range p {
		if token == ">" {
			return len(s) > i
		}
		if i >= len(s) || token != "*" && token != s[i] {
			return false
		}
	}
	return len(p) == len(s)
}

// The server compares the filter in a request's subject with the one in its
// body, so that the subject's is what a reader gets.
func TestReadersAreHeldToTheirFilter(t *testing.T) {
	t.Parallel()
	n := startServer(t)
	c := n.client("clusters/c1")
	const subject = "$JS.API.CONSUMER.CREATE.KV_egress-state.any.$KV.egress-state.c1.>"
	for name, filter := range map[string]map[string]any{
		"another":     {"filter_subject": "$KV.egress-state.c2.>"},
		"none":        {},
		"several":     {"filter_subjects": []string{"$KV.egress-state.c1.>", "$KV.egress-state.c2.>"}},
		"two of each": {"filter_subject": "$KV.egress-state.c1.>", "filter_subjects": []string{"$KV.egress-state.>"}},
	} {
		config := map[string]any{"name": "any", "ack_policy": "none", "deliver_policy": "all"}
		for k, v := range filter {
			config[k] = v
		}
		answer, err := c.Request(subject, must(json.Marshal(map[string]any{"stream_name": "KV_egress-state", "config": config})), patience)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(answer.Data), `"error"`) {
			t.Errorf("%s filter: %s", name, answer.Data)
		}
	}
}

// What remains of a known trap: the server sends answers and a reader's messages
// wherever it is told to, whatever the asker may publish to. Records keep their
// own subject on the way, so no stream takes them for another's; only the
// server's answers arrive, which are no records and no events.
func TestAnswersSentElsewhereForgeNothing(t *testing.T) {
	t.Parallel()
	n := startServer(t)
	c := n.client("clusters/c1")
	js := must(jetstream.New(c.Conn))
	const forged = `{"specversion":"1.0","id":"/egress-gateway/gw/gw1/x","source":"/egress-gateway/gw/gw1","type":"io.egress-gateway.v1.programmed"}`
	must(js.Publish(within(t), "$KV.egress-state.c1.tenant.x", []byte(forged)))
	for _, target := range []string{"egress.audit.c1.gw.gw1.programmed", "$KV.egress-status.gw1.tenant.c1.x", "$KV.egress-state.c2.tenant.x"} {
		cfg := jetstream.ConsumerConfig{Name: "trap", FilterSubject: "$KV.egress-state.c1.>", AckPolicy: jetstream.AckNonePolicy}
		must(js.CreateConsumer(within(t), "KV_egress-state", cfg))
		if err := c.PublishRequest("$JS.API.CONSUMER.MSG.NEXT.KV_egress-state.trap", target, []byte(`{"batch":10,"no_wait":true}`)); err != nil {
			t.Fatal(err)
		}
		if err := js.DeleteConsumer(within(t), "KV_egress-state", "trap"); err != nil {
			t.Fatal(err)
		}
		push := fmt.Sprintf(`{"stream_name":"KV_egress-state","config":{"name":"trap","deliver_subject":%q,"filter_subject":"$KV.egress-state.c1.>","ack_policy":"none","deliver_policy":"all"}}`, target)
		if _, err := c.Request("$JS.API.CONSUMER.CREATE.KV_egress-state.trap.$KV.egress-state.c1.>", []byte(push), patience); err != nil {
			t.Fatal(err)
		}
		_ = js.DeleteConsumer(within(t), "KV_egress-state", "trap") // not made if the target is the bucket itself
		m := nats.NewMsg("$KV.egress-state.c1.tenant.x")
		m.Reply, m.Data = target, []byte(forged)
		if err := c.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Request("$JS.API.STREAM.INFO.EGRESS_AUDIT", nil, patience); err != nil { // after all of it
			t.Fatal(err)
		}
	}
	seen, forgeries := 0, 0
	err := bus.ReadAudit(within(t), n.conn("auditor", "auditor"), bus.AuditFilter{}, func(e bus.AuditEvent) error {
		seen++
		if e.Genuine() == nil {
			forgeries++
		}
		return nil
	})
	if err != nil || seen == 0 || forgeries != 0 {
		t.Errorf("%d messages in the audit, %d of them as if they were genuine: %v", seen, forgeries, err)
	}
}
