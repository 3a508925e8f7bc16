// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// DashboardFile is the Grafana dashboard, below the module's root.
const DashboardFile = "deploy/grafana/egress-gateway.json"

// Query is a query of a panel, or of a variable.
type Query struct {
	Panel string
	Expr  string // as it stands in the file
}

// Dashboard holds the parts of a Grafana dashboard that are checked.
type Dashboard struct {
	UID    string  `json:"uid"`
	Panels []Panel `json:"panels"`
	Vars   struct {
		List []struct {
			Name       string `json:"name"`
			Type       string `json:"type"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
}

// Panel is one panel.
type Panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	Grid        struct {
		X, Y, W, H int
	} `json:"gridPos"`
	Targets []struct {
		Expr string `json:"expr"`
	} `json:"targets"`
}

// ReadDashboard reads the dashboard. root is the module's root.
func ReadDashboard(root string) (Dashboard, error) {
	var d Dashboard
	text, err := os.ReadFile(filepath.Join(root, DashboardFile))
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return d, fmt.Errorf("%s: %w", DashboardFile, err)
	}
	return d, nil
}

// Queries returns all queries of the panels.
func (d Dashboard) Queries() []Query {
	var out []Query
	for _, p := range d.Panels {
		for _, t := range p.Targets {
			out = append(out, Query{p.Title, t.Expr})
		}
	}
	return out
}

// PromQL returns the query as Grafana sends it with everything selected, and
// with rates over window.
func (q Query) PromQL(window string) string {
	return strings.NewReplacer("$__rate_interval", window, "$gateway", ".*", "$tenant", ".*").Replace(q.Expr)
}
