// SPDX-License-Identifier: Apache-2.0

package plan

// Tenant implements Step.
func (SetGuard) Tenant() string { return "" }

// Tenant implements Step.
func (DelGuard) Tenant() string { return "" }

// Tenant implements Step.
func (SetElements) Tenant() string { return "" }

// Tenant implements Step.
func (s AddElement) Tenant() string { return s.Of }

// Tenant implements Step.
func (s DelElement) Tenant() string { return s.Of }

// Tenant implements Step.
func (SetSysctl) Tenant() string { return "" }

// Tenant implements Step.
func (SetChain) Tenant() string { return "" }

// Tenant implements Step.
func (NewChain) Tenant() string { return "" }

// Tenant implements Step.
func (DelChain) Tenant() string { return "" }

// Tenant implements Step.
func (s AddRule) Tenant() string { return s.Of }

// Tenant implements Step.
func (s DelRule) Tenant() string { return s.Of }

// Tenant implements Step.
func (SetHook) Tenant() string { return "" }

// Tenant implements Step.
func (s MakeLink) Tenant() string { return s.Link.Tenant }

// Tenant implements Step.
func (s RaiseLink) Tenant() string { return s.Of }

// Tenant implements Step.
func (s DelLink) Tenant() string { return s.Of }

// Tenant implements Step.
func (s AddAddr) Tenant() string { return s.Of }

// Tenant implements Step.
func (s DelAddr) Tenant() string { return s.Of }

// Tenant implements Step.
func (SetRoute) Tenant() string { return "" }

// Tenant implements Step.
func (DelRoute) Tenant() string { return "" }

// Executor implements Step.
func (SetGuard) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelGuard) Executor() Executor { return Kernel }

// Executor implements Step.
func (SetElements) Executor() Executor { return Kernel }

// Executor implements Step.
func (AddElement) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelElement) Executor() Executor { return Kernel }

// Executor implements Step.
func (SetSysctl) Executor() Executor { return Kernel }

// Executor implements Step.
func (SetChain) Executor() Executor { return Kernel }

// Executor implements Step.
func (NewChain) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelChain) Executor() Executor { return Kernel }

// Executor implements Step.
func (AddRule) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelRule) Executor() Executor { return Kernel }

// Executor implements Step.
func (SetHook) Executor() Executor { return Kernel }

// Executor implements Step.
func (MakeLink) Executor() Executor { return Kernel }

// Executor implements Step.
func (RaiseLink) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelLink) Executor() Executor { return Kernel }

// Executor implements Step.
func (AddAddr) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelAddr) Executor() Executor { return Kernel }

// Executor implements Step.
func (SetRoute) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelRoute) Executor() Executor { return Kernel }
