// SPDX-License-Identifier: Apache-2.0

package plan

// Executor names the package that carries out a step.
type Executor string

// The executors.
const (
	Kernel   Executor = "kernel"
	Flows    Executor = "flows"
	Announce Executor = "announce"
)

// Step is one change. Steps are carried out in their order; once a step of a
// tenant failed, the tenant's later steps of the same list must not be tried
// (Without drops them).
type Step interface {
	// String is the command that a person would type.
	String() string
	// Tenant is the TenantID that the step is for, or empty.
	Tenant() string
	Executor() Executor
}

// Run is a row of steps with the same executor.
type Run struct {
	Executor Executor
	Steps    []Step
}

// Runs cuts steps into rows of the same executor, in their order.
func Runs(steps []Step) []Run {
	var out []Run
	for _, s := range steps {
		if n := len(out); n == 0 || out[n-1].Executor != s.Executor() {
			out = append(out, Run{Executor: s.Executor()})
		}
		last := &out[len(out)-1]
		last.Steps = append(last.Steps, s)
	}
	return out
}

// Without returns the steps whose tenant is not in failed.
func Without(steps []Step, failed map[string]bool) []Step {
	out := make([]Step, 0, len(steps))
	for _, s := range steps {
		if !failed[s.Tenant()] {
			out = append(out, s)
		}
	}
	return out
}
