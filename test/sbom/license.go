// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
)

// allowed are the licences under which modules may be delivered with a program
// that is under the Apache licence, as SPDX names them. They ask for no more than
// that their texts go along.
var allowed = map[string]bool{
	"Apache-2.0": true, "MIT": true, "BSD-2-Clause": true, "BSD-3-Clause": true, "ISC": true, "CC0-1.0": true, "Unlicense": true,
}

var (
	licenseName = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)([-._].*)?$`)
	noticeName  = regexp.MustCompile(`(?i)^(notice|patents|authors)([-._](md|txt))?$`)
	sourceName  = regexp.MustCompile(`(?i)\.(go|s|c|h)$`)
	blanks      = regexp.MustCompile(`[\s#*/>"'` + "`" + `“”’]+`)
)

func isLicense(name string) bool {
	return licenseName.MatchString(name) && !sourceName.MatchString(name)
}
func isNotice(name string) bool { return noticeName.MatchString(name) }

// signs are sentences that stand in one licence and in no other one here. A text
// may hold several licences.
var signs = []struct{ id, sentence string }{
	{"Apache-2.0", "apache license version 2.0, january 2004"},
	{"Apache-2.0", "licensed under the apache license, version 2.0"},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files"},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy of the software and associated documentation files"},
	{"ISC", "permission to use, copy, modify, and distribute this software for any purpose with or without fee is hereby granted"},
	{"ISC", "permission to use, copy, modify, and or distribute this software for any purpose with or without fee is hereby granted"},
	{"MPL-2.0", "mozilla public license version 2.0"},
	{"MPL-2.0", "mozilla public license, version 2.0"},
	{"EPL-2.0", "eclipse public license - v 2.0"},
	{"AGPL-3.0", "gnu affero general public license version 3"},
	{"LGPL", "gnu lesser general public license version"},
	{"LGPL", "gnu library general public license version"},
	{"GPL", "gnu general public license version"},
	{"BUSL-1.1", "business source license 1.1"},
	{"SSPL-1.0", "server side public license version 1"},
	{"CC0-1.0", "cc0 1.0 universal"},
	{"Unlicense", "this is free and unencumbered software released into the public domain"},
}

const (
	bsdBegin   = "redistribution and use in source and binary forms"
	bsdBinary  = "redistributions in binary form must reproduce the above copyright notice"
	bsdEndorse = "may be used to endorse or promote products derived from"
	bsdAds     = "all advertising materials mentioning features"
)

// classify returns the licences whose text this is or holds; none if it knows
// none of them.
func classify(text string) []string {
	text = strings.ToLower(blanks.ReplaceAllString(text, " "))
	seen := map[string]bool{}
	var out []string
	add := func(id string) {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	for _, s := range signs {
		if strings.Contains(text, s.sentence) {
			add(s.id)
		}
	}
	if strings.Contains(text, bsdBegin) && strings.Contains(text, bsdBinary) {
		switch {
		case strings.Contains(text, bsdAds):
			add("BSD-4-Clause")
		case strings.Contains(text, bsdEndorse):
			add("BSD-3-Clause")
		default:
			add("BSD-2-Clause")
		}
	}
	return out
}
