// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"slices"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestStepsThatGoTogether: none of them is of a tenant that another is of, which
// may fail.
func TestStepsThatGoTogether(t *testing.T) {
	var steps []plan.Step
	for i := range 100 {
		steps = append(steps, plan.RaiseLink{Of: fmt.Sprint("t", i), Name: plan.LinkName(i + 1)})
	}
	a, b := plan.AddAddr{Of: "a"}, plan.AddAddr{Of: "b"}
	for _, c := range []struct {
		steps []plan.Step
		want  int
	}{
		{steps, requestsAtOnce},
		{steps[90:], 10},
		{[]plan.Step{a, b, a}, 2},
		{[]plan.Step{plan.MakeLink{Link: plan.Link{Tenant: "a"}}, plan.RaiseLink{Of: "a"}}, 1},
		{[]plan.Step{a, plan.DelAddr{Of: "b"}, b}, 1},
		{slices.Concat(steps[:5], []plan.Step{steps[2]}), 5},
	} {
		if got := requestRow(c.steps); got != c.want {
			t.Errorf("%d of %d steps go together, want %d", got, len(c.steps), c.want)
		}
	}
}
