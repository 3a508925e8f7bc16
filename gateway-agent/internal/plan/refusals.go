// SPDX-License-Identifier: Apache-2.0

package plan

import "strings"

// Refusal returns why a rule of one of our filter chains refuses what it
// matches, as a word for metrics, or "" if it refuses nothing.
func Refusal(chain, rule string) string {
	if target := ruleJump(rule); target != "DROP" && target != "REJECT" {
		return ""
	}
	switch chain {
	case chainRej:
		return RefusedUntranslated.String() // a known pod's
	case chainOut:
		switch {
		case strings.Contains(rule, "--ctstate INVALID"):
			return RefusedInvalid.String()
		case strings.HasPrefix(rule, "-d "):
			return "pod_destination"
		}
		return RefusedUnknown.String()
	case chainNodes:
		return "from_outside"
	case chainExt:
		return refusalFromOutside(rule)
	}
	return ""
}

func refusalFromOutside(rule string) string {
	switch {
	case strings.HasPrefix(rule, "-s "):
		return "spoofed_source"
	case strings.HasPrefix(rule, "-d "):
		return "from_outside"
	case strings.HasPrefix(rule, "-o "):
		return "released_address"
	case strings.Contains(rule, "-m connmark "):
		return "no_way_back"
	}
	return "other"
}
