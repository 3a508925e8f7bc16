// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	x := goodTenant()
	if got, err := DecodeTenant(TenantKey("c1", "ns-blue"), Encode(x)); err != nil || !reflect.DeepEqual(got, x) {
		t.Error(got, err)
	}
	n := goodNode()
	if got, err := DecodeNode(NodeKey("c1", "node1.example"), Encode(n)); err != nil || !reflect.DeepEqual(got, n) {
		t.Error(got, err)
	}
	net := Network{Schema: Schema, Cluster: "c1", PodNetworks: nets("10.128.0.0/14")}
	if got, err := DecodeNetwork(NetworkKey("c1"), Encode(net)); err != nil || !reflect.DeepEqual(got, net) {
		t.Error(got, err)
	}
	r := Ready{Schema: Schema, Cluster: "c1", Epoch: "e", Generation: 1 << 52, Count: 3, Hash: "h"}
	if got, err := DecodeReady(ReadyKey("c1"), Encode(r)); err != nil || got != r {
		t.Error(got, err)
	}
	h := Heartbeat{Schema: Schema, Cluster: "c1", Writer: "w", Time: at}
	if got, err := DecodeHeartbeat(HeartbeatKey("c1"), Encode(h)); err != nil || got != h {
		t.Error(got, err)
	}
	s := Status{Schema: Schema, Gateway: "gw1", Cluster: "c1", Name: "a", UID: "u", Generation: 2, Reason: "R", Message: "m", Time: at}
	if got, err := DecodeStatus(StatusKey("gw1", "c1", "a"), Encode(s)); err != nil || got != s {
		t.Error(got, err)
	}
	u := Summary{Schema: Schema, Gateway: "gw1", Group: "g", Version: "v", Addresses: addrs("192.0.2.1"), Tenants: 1, Applied: map[string]int64{"c1": 4}, Time: at}
	if got, err := DecodeSummary(SummaryKey("gw1"), Encode(u)); err != nil || !reflect.DeepEqual(got, u) {
		t.Error(got, err)
	}
}

// The wire form is a promise to agents of other versions.
func TestWireForm(t *testing.T) {
	t.Parallel()
	x := goodTenant()
	x.GatewayIPs, x.EgressIPs = x.GatewayIPs[:1], x.EgressIPs[:1]
	const want = `{"schema":1,"cluster":"c1","name":"ns-blue","uid":"u","generation":1,"namespaces":["ns-blue"],"pool":"public","group":"default","gatewayIPs":["192.168.99.13"],"egressIPs":["192.168.55.113"]}`
	if got := string(Encode(x)); got != want {
		t.Errorf("%s", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	k := TenantKey("c1", "ns-blue")
	good := string(Encode(goodTenant()))
	for name, c := range map[string]struct{ b, want string }{
		"empty":          {"", "no JSON"},
		"garbage":        {"\x00\xff", "no JSON"},
		"trailing":       {good + "x", "no JSON"},
		"array":          {"[]", "no JSON"},
		"null":           {"null", "no schema"},
		"no schema":      {`{"cluster":"c1"}`, "no schema"},
		"null schema":    {`{"schema":null}`, "no schema"},
		"later schema":   {`{"schema":2,"egressIPs":{"other":"form"}}`, "schema version 2"},
		"other type":     {`{"schema":1,"egressIPs":"192.0.2.1"}`, "no such record"},
		"bad address":    {strings.Replace(good, "192.168.55.113", "192.168.55.300", 1), "no such record"},
		"other key":      {strings.Replace(good, "ns-blue", "ns-red", 1), `belongs to key "c1.tenant.ns-red"`},
		"other cluster":  {strings.Replace(good, "c1", "c2", 1), `belongs to key "c2.tenant.ns-blue"`},
		"too large":      {good + strings.Repeat(" ", MaxRecord), "at most"},
		"unknown fields": {strings.Replace(good, "{", `{"later":[1],`, 1), ""},
	} {
		got, err := DecodeTenant(k, []byte(c.b))
		check(t, name, err, c.want)
		if err != nil && (!reflect.DeepEqual(got, Tenant{}) || !strings.Contains(err.Error(), k.String())) {
			t.Errorf("%s: %+v with %v", name, got, err)
		}
	}
	if _, err := DecodeReady(ReadyKey("c1"), Encode(Ready{Schema: 1, Cluster: "c2"})); err == nil {
		t.Error("a Ready record of another cluster is accepted")
	}
	if _, err := DecodeStatus("gw2.tenant.c1.a", Encode(Status{Schema: 1, Gateway: "gw1", Cluster: "c1", Name: "a"})); err == nil {
		t.Error("a status of another gateway is accepted")
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	a := map[string][]byte{"k1": []byte("v1"), "k2": []byte("v2")}
	if Digest(a) != Digest(map[string][]byte{"k2": []byte("v2"), "k1": []byte("v1")}) {
		t.Error("the order matters")
	}
	for name, b := range map[string]map[string][]byte{
		"other value": {"k1": []byte("v1"), "k2": []byte("v3")}, "other key": {"k1": []byte("v1"), "k3": []byte("v2")},
		"fewer": {"k1": []byte("v1")}, "none": nil, "moved": {"k1": []byte("v1 2 k2 2 v2")},
	} {
		if Digest(a) == Digest(b) {
			t.Errorf("%s: the same digest", name)
		}
	}
}

// stable fails unless a decoded record is valid, and is the same after another
// way through the codec.
func stable[T any](t *testing.T, v T, err error, again func([]byte) (T, error)) {
	t.Helper()
	if err != nil {
		if !reflect.ValueOf(v).IsZero() {
			t.Fatalf("%+v with %v", v, err)
		}
		return
	}
	b := Encode(v)
	w, err := again(b)
	if err != nil || !bytes.Equal(b, Encode(w)) {
		t.Fatalf("%s, then %s: %v", b, Encode(w), err)
	}
}

func seeds(f *testing.F) {
	x := goodTenant()
	f.Add(Encode(x))
	f.Add(Encode(goodNode()))
	f.Add(Encode(Network{Schema: Schema, Cluster: "c1", PodNetworks: nets("10.128.0.0/14")}))
	f.Add(Encode(Ready{Schema: Schema, Cluster: "c1"}))
	f.Add(Encode(Heartbeat{Schema: Schema, Cluster: "c1"}))
	f.Add(Encode(Status{Schema: Schema, Gateway: "gw1", Cluster: "c1", Name: "ns-blue"}))
	f.Add(Encode(Summary{Schema: Schema, Gateway: "gw1"}))
	f.Add([]byte(`{"schema":1,"schema":2}`))
}

func FuzzDecodeTenant(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		decode := func(b []byte) (Tenant, error) { return DecodeTenant(TenantKey("c1", "ns-blue"), b) }
		v, err := decode(b)
		stable(t, v, err, decode)
	})
}

func FuzzDecodeNode(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		decode := func(b []byte) (Node, error) { return DecodeNode(NodeKey("c1", "node1.example"), b) }
		v, err := decode(b)
		stable(t, v, err, decode)
	})
}

func FuzzDecodeNetwork(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		decode := func(b []byte) (Network, error) { return DecodeNetwork(NetworkKey("c1"), b) }
		v, err := decode(b)
		stable(t, v, err, decode)
	})
}

func FuzzDecodeMeta(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		ready := func(b []byte) (Ready, error) { return DecodeReady(ReadyKey("c1"), b) }
		r, err := ready(b)
		stable(t, r, err, ready)
		heartbeat := func(b []byte) (Heartbeat, error) { return DecodeHeartbeat(HeartbeatKey("c1"), b) }
		h, err := heartbeat(b)
		stable(t, h, err, heartbeat)
	})
}

func FuzzDecodeStatus(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		status := func(b []byte) (Status, error) { return DecodeStatus(StatusKey("gw1", "c1", "ns-blue"), b) }
		s, err := status(b)
		stable(t, s, err, status)
		summary := func(b []byte) (Summary, error) { return DecodeSummary(SummaryKey("gw1"), b) }
		u, err := summary(b)
		stable(t, u, err, summary)
	})
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"c1.tenant.a", "c1.node.a.b", "c1.meta.ready", "gw1.summary", "gw1.tenant.c1.a", ".", "c1.meta.ready."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Fatalf("%q became %q", s, k)
		} else if err != nil && k != (Key{}) {
			t.Fatalf("%+v with %v", k, err)
		}
		gateway, cluster, name, err := ParseStatusKey(s)
		if err != nil {
			return
		}
		back := SummaryKey(gateway)
		if name != "" {
			back = StatusKey(gateway, cluster, name)
		}
		if back != s {
			t.Fatalf("%q became %q", s, back)
		}
	})
}
